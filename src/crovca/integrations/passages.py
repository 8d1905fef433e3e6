"""Texts that an index finds, or a service over one: what retrievers of other libraries are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crovca.errors import InvalidInputError
from crovca.index.reader import Reader
from crovca.integrations.service import Service


@dataclass(frozen=True)
class Passage:
    """An item that was found.

    Attributes:
        id: as a string, whatever it is in the index.
        text: from the text's column; "" where the item has none.
        metadata: its other columns, and "distance".
        distance: smaller is better.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    distance: float


def passages(
    index: Reader | Service, embedding: Sequence[float], text: str, k: int, *, where: str | None, rescore: float | None
) -> list[Passage]:
    """The nearest items of one query, best first.

    Args:
        index: it holds its model (``crovca index build --model``), or is asked over HTTP.
        embedding: (d,) of the query, as the model takes it.
        text: the metadata's column that holds the texts.
        k, where, rescore: as of ``HashIndex.search``.

    Raises:
        InvalidInputError: there is no such column, or what ``search`` raises.
    """
    queries = np.asarray([embedding], np.float32)
    found = []
    for row in index.search(embeddings=queries, k=k, where=where, rescore=rescore).to_list()[0]:
        columns = dict(row.get("metadata", {}))
        if text not in columns:
            raise InvalidInputError(
                f"the index has no column {text!r}; it has {sorted(columns)}: name that of the texts"
            )
        content = columns.pop(text)
        metadata = {**columns, "distance": row["distance"]}
        found.append(Passage(str(row["id"]), "" if content is None else str(content), metadata, row["distance"]))
    return found
