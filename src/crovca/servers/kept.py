"""Kept embeddings on a server: a column of text, so that every server can order candidates by them.

Its name says what the numbers are, ``crovca_int8`` or ``crovca_float16``. A value is a row of an index's embeddings
(``index.originals``), without its scale, which cosine does not see: low byte first, as base64.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.errors import InvalidInputError, ServerError
from crovca.index.originals import KEPT

COLUMNS = {f"crovca_{keep}": np.dtype(kind).newbyteorder("<") for keep, kind in KEPT.items()}


def with_kept(metadata: pa.Table | None, kept: npt.NDArray[Any]) -> pa.Table:
    """Metadata with a column of kept embeddings (n, d), int8 or float16."""
    column = f"crovca_{kept.dtype.name}"
    table = pa.table({}) if metadata is None else metadata
    if column in table.column_names:
        raise InvalidInputError(f"the metadata column {column!r} has the name of kept embeddings; rename it")
    rows = np.ascontiguousarray(kept, COLUMNS[column])
    text = pa.array([b64encode(row).decode("ascii") for row in rows], pa.string())
    return pa.table({column: text}) if not table.num_columns else table.append_column(column, text)


def kept_embeddings(metadata: pa.Table | None, width: int) -> npt.NDArray[Any]:
    """What ``with_kept`` stored with items: (n, width)."""
    names = [] if metadata is None else [name for name in metadata.column_names if name in COLUMNS]
    for name in names:
        assert metadata is not None
        column = metadata.column(name)
        if column.null_count:
            continue
        try:
            data = [b64decode(one, validate=True) for one in column.to_pylist()]
        except (ValueError, TypeError) as error:
            raise ServerError(f"the column {name!r} does not hold what was pushed ({error}); push again") from None
        kind = COLUMNS[name]
        widths = {len(one) // kind.itemsize for one in data}
        if widths != {width}:
            raise InvalidInputError(
                f"the items have embeddings of {sorted(widths)[0]} numbers, the queries' have {width}: embed them with "
                "the encoder that the items' come from"
            )
        return np.frombuffer(b"".join(data), kind).reshape(len(data), width)
    raise InvalidInputError(
        "these items have no embeddings here: push them along, from an index that keeps them (push(embeddings=True), "
        "'crovca index push --embeddings')"
    )
