"""Items for the tests, the numpy answer that servers have to equal, and an index in memory to push from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from crovca.codes import Codes
from crovca.ids import tie_order
from crovca.index.results import StoredItems
from crovca.index.scoring import BitScorer, top_k

ODD_IDS = [
    "",
    "it's",
    'say "x"',
    "back\\slash",
    "100%s",
    "tab\tnew\nline",
    "née/日本/🙂",
    "; DROP TABLE x",
    "a,b",
    "NULL",
]


def sample(count, bits, seed=0, id_type="int64", first=0):
    """ids, codes and metadata; codes around a few centers, so that there are ties and near items."""
    random = np.random.default_rng(seed)
    centers = random.random((5, bits)) < 0.5
    flipped = random.random((count, bits)) < 0.2
    codes = Codes.from_bits(centers[random.integers(5, size=count)] ^ flipped)
    numbers = np.arange(first, first + count)
    ids = numbers * 7 - 50
    if id_type == "string":
        ids = np.array([*ODD_IDS, *(f"photos/{number}.jpg" for number in numbers)][:count])
    label = np.array(["cat", "dog", "it's", ""])[random.integers(4, size=count)]
    metadata = pa.table(
        {
            "year": pa.array(1990 + random.integers(30, size=count), pa.int32()),
            "label": pa.array(label, mask=random.random(count) < 0.1),
            "score": random.normal(size=count),
            "seen": random.random(count) < 0.5,
        }
    )
    return ids, codes, metadata


def queries_for(codes, count, seed=1, scale=1.0):
    """Logits near some of the items."""
    random = np.random.default_rng(seed)
    near = codes.unpack()[random.integers(len(codes), size=count)].astype(np.float32) * 2 - 1
    return ((near + random.normal(size=near.shape)) * scale).astype(np.float32)


def truth(logits, k, metric, ids, codes):
    """ids and scores of the exact answer."""
    scorer = BitScorer.of(metric, logits, codes)
    found = top_k(scorer, k, ties=tie_order(ids, len(ids)))
    return ids[found.rows], found.distances


def records(items):
    """id -> (code, what is not null), however the server types it."""
    rows = items.metadata.to_pylist() if items.metadata is not None else [{}] * len(items.ids)
    return {
        one: (code.tobytes(), {name: value for name, value in row.items() if value is not None})
        for one, code, row in zip(items.ids.tolist(), items.codes.packed, rows, strict=True)
    }


@dataclass
class MemoryIndex:
    """What a push needs of an index, with writes that count generations."""

    bits: int
    id_type: str = "int64"
    uuid: str = "index-1"
    generation: int = 0
    digest: str = ""
    items: dict[Any, Any] = field(default_factory=dict)  # id -> (packed code, metadata)

    def __len__(self):
        return len(self.items)

    def upsert(self, ids, codes, metadata=None):
        rows = metadata.to_pylist() if metadata is not None else [{}] * len(ids)
        for one, code, row in zip(ids.tolist(), codes.packed, rows, strict=True):
            self.items[one] = (code.tobytes(), row)
        self.generation += 1
        return self

    def delete(self, ids):
        for one in ids:
            del self.items[one]
        self.generation += 1
        return self

    def batches(self, rows=65536):
        order = list(self.items)
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            packed = np.frombuffer(b"".join(self.items[one][0] for one in part), np.uint8)
            table = pa.Table.from_pylist([self.items[one][1] for one in part])
            codes = Codes(packed.reshape(len(part), -1), self.bits)
            yield StoredItems(np.array(part), codes, table if table.num_columns else None)

    def records(self):
        return {
            one: (code, {name: value for name, value in row.items() if value is not None})
            for one, (code, row) in self.items.items()
        }
