"""Codes of a Parquet data set, written by Ray Data: each actor reads the model once, each block is one product.

The embeddings are handwritten digits here; in yours, `data` and `codes` are folders, buckets or databases, and `encode`
stays as it is.

pip install 'crovca[ray]'
python examples/ray_data.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from sklearn.datasets import load_digits

from crovca import Codes, Hasher, HashIndex


class Encode:
    """A batch with its embeddings (n, d) replaced by codes (n, bytes)."""

    def __init__(self, model: str) -> None:
        self.hasher = Hasher.load(model, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        embeddings = np.stack(batch.pop("embedding")).astype(np.float32)
        return {**batch, "code": self.hasher.encode(embeddings).packed}


folder = Path(tempfile.mkdtemp())
digits = load_digits().data.astype(np.float32)
(folder / "data").mkdir()
for part in range(4):
    rows = np.arange(part, len(digits), 4)
    pq.write_table(pa.table({"id": rows, "embedding": list(digits[rows])}), folder / "data" / f"{part}.parquet")
Hasher(bits=32, epochs=5, seed=0).fit(digits).save(folder / "model")

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
coded = ray.data.read_parquet(str(folder / "data")).map_batches(
    Encode, fn_constructor_args=(str(folder / "model"),), concurrency=1, num_cpus=0.5, batch_size=512
)
coded.write_parquet(str(folder / "codes"))
ray.shutdown()

table = pq.read_table(folder / "codes")
codes = Codes(np.stack(table["code"].to_numpy()), bits=32)
hasher = Hasher.load(folder / "model")
with HashIndex.create(folder / "index", 32) as index:
    index.add(table["id"].to_numpy(), codes)
    found = index.search(hasher.logits(digits[:3]), k=1)
print(len(table), "items; the nearest to the first three:", found.ids[:, 0].tolist())
