"""An index for engines that are not reached from here: their schema, their items in files, and a query to fill in.

All compute the score themselves: a sum of the query's numbers under the item's bits, which is what asymmetric Hamming
and BCE distances are but for a constant. Elasticsearch has it as ``dotProduct`` of floats with a ``bit`` field, Vespa
as ``sum(query(q) * unpack_bits(...))``, OpenSearch as a script over 64-bit words. It is tested here against the same
formulas written in Python, and was not run against the real servers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes
from crovca.errors import ConfigError, InvalidInputError
from crovca.files import atomic_directory, check_output, write_json
from crovca.index.index import HashIndex
from crovca.index.scoring import BitScorer
from crovca.servers.rows import ServerRows, json_rows

_ITEMS = 50_000  # read at a time
_FILE_BYTES = 8_000_000  # a bulk request may have 100 MB, of some services 10
_ID_BYTES = 512  # Elasticsearch and OpenSearch take no longer ids
_KEYWORD = 8191  # characters of 4 bytes at most: a term may have 32,766 bytes
_MARKER = "query.json"
_K = 10

Row = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """What was written: items, and the files with them."""

    items: int
    files: list[str]


@dataclass(frozen=True)
class Target:
    """How an engine takes codes.

    Attributes:
        schema: name and text of the file that describes the fields, of (bits, columns).
        item: the lines of an item, of its id, code (bytes), and metadata.
        query: the body of a query, of a query's weights, their shift and k.
        run: what to do with the files.
        signed: there are no whole numbers above 2^63 - 1.
    """

    schema: Callable[[int, pa.Schema], tuple[str, str]]
    item: Callable[[str, bytes, Row], list[Row]]
    query: Callable[[list[float], float, int], Row]
    run: str
    signed: bool = False


def export(index: HashIndex, engine: str, path: Path, *, force: bool = False) -> Export:
    """Write schema, items, ``query.json`` and ``README.md`` for an engine.

    Args:
        index: what to write; ids become strings.
        engine: a name of ``TARGETS``.
        path: the folder; ``force`` replaces what an export wrote there.

    Raises:
        ConfigError: an unknown engine.
        InvalidInputError: metadata that servers do not hold, NaN or infinity among them, or an id that they refuse.
        OutputExistsError: something else stands at ``path``.
    """
    target = get_target(engine)
    check_output(path, force=force, marker=_MARKER)
    view, items = index.view(), 0
    columns: dict[str, pa.DataType] = {}
    with atomic_directory(path, new=not force) as folder, _Parts(folder) as parts:
        for part in view.batches(_ITEMS):
            rows = ServerRows.of(part.ids, part.codes, part.metadata, bits=view.bits, id_type=view.id_type or "string")
            columns |= {_name(field.name): field.type for field in rows.metadata.schema}
            codes = (code.tobytes() for code in rows.codes.packed)
            metadata = json_rows(rows.metadata, engine, signed=target.signed)
            for id, code, row in zip(rows.ids.tolist(), codes, metadata, strict=True):
                lines = target.item(_id(str(id)), code, row)
                parts.write("".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines))
            items += len(rows)
        name, text = target.schema(view.bits, pa.schema(list(columns.items())))
        (folder / name).write_text(text, encoding="utf-8")
        write_json(folder / _MARKER, target.query([0.0] * view.bits, 0.0, _K))
        (folder / "README.md").write_text(_readme(engine, target, view.bits, items), encoding="utf-8")
    return Export(items, parts.names)


def query_for(engine: str, logits: npt.ArrayLike, k: int = _K, *, metric: str = "bce") -> tuple[Row, float]:
    """The body of one query, and what to subtract a score from to have the distance that ``HashIndex.search`` gives.

    Args:
        engine: a name of ``TARGETS``.
        logits: (bits,) of the query, as many as the index has bits.
        k: how many.
        metric: a score of ``crovca.metrics`` that needs codes alone.

    Raises:
        ConfigError: an unknown engine.
        InvalidInputError: logits or a metric that cannot be used.
    """
    values = np.asarray(logits, np.float32)
    scorer = BitScorer.of(metric, values[None], Codes(np.empty((0, -(-values.size // 8)), np.uint8), values.size))
    weights = scorer.weights[0].tolist()
    # A score may not be negative, not even by the rounding of an engine that adds in 32 bits.
    shift = math.fsum(-weight for weight in weights if weight < 0)
    shift += (len(weights) + 1) * 2.0**-23 * math.fsum(map(abs, weights))
    return get_target(engine).query(weights, shift, k), float(scorer.offsets[0]) + shift


def get_target(engine: str) -> Target:
    """What there is of an engine; ConfigError where it is unknown."""
    if engine not in TARGETS:
        raise ConfigError(f"an index is exported for {', '.join(TARGETS)}, not for {engine!r}")
    return TARGETS[engine]


class _Parts:
    """Lines in files ``items-00000.ndjson``, ... of about ``_FILE_BYTES`` each; what is written at once is in one."""

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = []
        self._folder, self._bytes = folder, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, text: str) -> None:
        """Append, or begin the next file where this one would be too large."""
        data = text.encode()
        if self._file is None or self._bytes + len(data) > _FILE_BYTES:
            self._close()
            self.names.append(f"items-{len(self.names):05d}.ndjson")
            self._file, self._bytes = (self._folder / self.names[-1]).open("wb"), 0
        self._bytes += self._file.write(data)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def _id(id: str) -> str:
    size = len(id.encode())
    if not 0 < size <= _ID_BYTES:
        raise InvalidInputError(
            f"the id {id[:40]!r} has {size} bytes, and not every engine takes it; expected 1 to {_ID_BYTES}: "
            "build an index with other ids"
        )
    return id


def _name(column: str) -> str:
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", column) or re.fullmatch("word[0-9]+|documentid|sddocname", column):
        raise InvalidInputError(
            f"the metadata column {column!r} has a name that not every engine takes; rename it: a letter, then "
            "letters, digits and _, and not word0, word1, ..., documentid or sddocname"
        )
    return column


def _padded(bits: int) -> int:
    return -(-bits // 8) * 8


def _kind(kind: pa.DataType, names: dict[str, str]) -> str:
    """An engine's name of an Arrow type."""
    types = pa.types
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        "unsigned": types.is_uint64,
        "integer": types.is_integer, "number": types.is_floating, "boolean": types.is_boolean,
        "date": lambda one: types.is_timestamp(one) or types.is_date32(one),
    }  # fmt: skip
    return next((names[name] for name, test in tests.items() if test(kind)), names["text"])


# --- Elasticsearch ---

_LUCENE = {
    "unsigned": "unsigned_long",
    "integer": "long",
    "number": "double",
    "boolean": "boolean",
    "date": "date",
    "text": "keyword",
}


def _lucene_fields(columns: pa.Schema) -> Row:
    fields: Row = {field.name: {"type": _kind(field.type, _LUCENE)} for field in columns}
    for field in fields.values():
        if field["type"] == "keyword":
            field["ignore_above"] = _KEYWORD  # longer texts are kept, but no condition finds them
    return fields


def _elastic_schema(bits: int, columns: pa.Schema) -> tuple[str, str]:
    code = {
        "type": "dense_vector",
        "element_type": "bit",
        "dims": _padded(bits),
        "index": True,
        "similarity": "l2_norm",
    }
    mappings = {"properties": {"code": code, **_lucene_fields(columns)}}
    return "index.json", json.dumps({"mappings": mappings}, indent=2) + "\n"


def _elastic_item(id: str, code: bytes, row: Row) -> list[Row]:
    return [{"index": {"_id": id}}, {"code": code.hex(), **row}]


def _elastic_query(weights: list[float], shift: float, k: int) -> Row:
    padded = weights + [0.0] * (_padded(len(weights)) - len(weights))
    script = {
        "source": "dotProduct(params.weights, 'code') + params.shift",
        "params": {"weights": padded, "shift": shift},
    }
    return {"size": k, "query": {"script_score": {"query": {"match_all": {}}, "script": script}}}


# --- OpenSearch ---


def _words(code: bytes) -> list[int]:
    """A code as signed numbers of 64 bits, its first bit the highest; the last one is padded with 0."""
    padded = code + bytes(-len(code) % 8)
    return [int.from_bytes(padded[at : at + 8], signed=True) for at in range(0, len(padded), 8)]


def _opensearch_schema(bits: int, columns: pa.Schema) -> tuple[str, str]:
    method = {"name": "hnsw", "engine": "faiss", "space_type": "hamming"}
    code = {"type": "knn_vector", "dimension": _padded(bits), "data_type": "binary", "method": method}
    words = {f"word{number}": {"type": "long", "index": False} for number in range(-(-bits // 64))}
    mappings = {"properties": {"code": code, **words, **_lucene_fields(columns)}}
    return "index.json", json.dumps({"settings": {"index.knn": True}, "mappings": mappings}, indent=2) + "\n"


def _opensearch_item(id: str, code: bytes, row: Row) -> list[Row]:
    words = {f"word{number}": word for number, word in enumerate(_words(code))}
    return [{"index": {"_id": id}}, {"code": np.frombuffer(code, np.int8).tolist(), **words, **row}]


_PAINLESS = (
    "double score = params.shift; for (int word = 0; word * 64 < params.weights.length; word++) {"
    " long bits = doc['word' + word].value; int end = (int) Math.min(64, params.weights.length - word * 64);"
    " for (int bit = 0; bit < end; bit++) { if ((bits << bit) < 0) { score += params.weights[word * 64 + bit]; } } }"
    " return score;"
)


def _opensearch_query(weights: list[float], shift: float, k: int) -> Row:
    script = {"lang": "painless", "source": _PAINLESS, "params": {"weights": weights, "shift": shift}}
    return {"size": k, "query": {"script_score": {"query": {"match_all": {}}, "script": script}}}


# --- Vespa ---

_VESPA = {
    "unsigned": "long",
    "integer": "long",
    "number": "double",
    "boolean": "bool",
    "date": "string",
    "text": "string",
}


def _vespa_schema(bits: int, columns: pa.Schema) -> tuple[str, str]:
    def field(name: str, kind: str, *lines: str) -> str:
        body = "".join(f"      {line}\n" for line in lines or ("indexing: summary | attribute",))
        return f"    field {name} type {kind} {{\n{body}    }}\n"

    size = _padded(bits)
    code = field("code", f"tensor<int8>(x[{size // 8}])", "indexing: attribute | index", "attribute {",
                 "  distance-metric: hamming", "}")  # fmt: skip
    others = "".join(field(one.name, _kind(one.type, _VESPA)) for one in columns)
    text = f"""schema item {{
  document item {{
{field("id", "string")}{code}{others}  }}
  rank-profile asymmetric {{
    inputs {{
      query(weights) tensor<float>(x[{size}])
      query(shift) double
    }}
    first-phase {{
      expression: sum(query(weights) * unpack_bits(attribute(code))) + query(shift)
    }}
  }}
}}
"""
    return "item.sd", text


_NOT_TEXT = re.compile(  # a feed that has one of these is refused (com.yahoo.text.Text)
    "[\\0-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufdd0-\\ufddf"
    + "".join(chr(plane * 0x10000 + end) for plane in range(1, 17) for end in (0xFFFE, 0xFFFF))
    + "]"
)


def _vespa_item(id: str, code: bytes, row: Row) -> list[Row]:
    for name, value in {"id": id, **row}.items():
        if isinstance(value, str) and (bad := _NOT_TEXT.search(value)):
            raise InvalidInputError(
                f"{'the id' if name == 'id' else f'the metadata column {name!r} has the value'} {value[:40]!r}, and "
                f"Vespa takes no text with the character {bad[0]!r}; leave it out"
            )
    return [{"put": f"id:crovca:item::{id}", "fields": {"id": id, "code": {"values": code.hex()}, **row}}]


def _vespa_query(weights: list[float], shift: float, k: int) -> Row:
    padded = weights + [0.0] * (_padded(len(weights)) - len(weights))
    return {
        "yql": "select * from item where true",
        "hits": k,
        "ranking": "asymmetric",
        "timeout": "60s",  # of half a second, as is usual, part of the items may be left out, and no error
        "ranking.softtimeout.enable": False,
        "input.query(weights)": padded,
        "input.query(shift)": shift,
    }


def _lucene_run(name: str) -> str:
    return f"""{name} or newer:

    curl -X PUT URL/codes -H 'Content-Type: application/json' --data-binary @index.json
    for file in items-*.ndjson; do
        curl -X POST URL/codes/_bulk -H 'Content-Type: application/x-ndjson' --data-binary @$file
    done
    curl -X POST URL/codes/_refresh
    curl -X POST URL/codes/_search -H 'Content-Type: application/json' --data-binary @query.json

A bulk request that failed in part says `"errors":true`. More than 10,000 results: `index.max_result_window`."""


TARGETS = {
    "elasticsearch": Target(_elastic_schema, _elastic_item, _elastic_query, _lucene_run("Elasticsearch 8.16")),
    "opensearch": Target(
        _opensearch_schema,
        _opensearch_item,
        _opensearch_query,
        _lucene_run("OpenSearch 2.16") + " Candidates by\nHamming distance: a knn query on the field code.",
    ),
    "vespa": Target(
        _vespa_schema,
        _vespa_item,
        _vespa_query,
        """Vespa 8.250 or newer: put item.sd among the `schemas` of an application whose services.xml has
`<document type="item" mode="index"/>`, deploy it, and:

    for file in items-*.ndjson; do vespa feed $file; done
    curl -X POST URL/search/ -H 'Content-Type: application/json' --data-binary @query.json

More than 400 results: `maxHits` in a query profile. On several content nodes, exact where `top-k-probability` is 1.
Candidates by Hamming distance: nearestNeighbor on the field code.""",
        signed=True,
    ),
}


def _readme(engine: str, target: Target, bits: int, items: int) -> str:
    return f"""# {items:,} codes of {bits} bits for {engine}

{target.run}

A query's numbers are its weights and a shift. In Python:

    from crovca.servers.export import query_for
    body, constant = query_for("{engine}", hasher.logits(X)[0], k=10)

An item's distance, as crovca gives it, is `constant` less its score; every item is scored, so the answer is exact but
for rounding to 32 bits and for the order of ties. Filters go in the place of "match_all" (or "where true").

Written by crovca, and not tried against a real server.
"""
