"""crovca: binary hash codes that keep the meaning of embeddings. Learn them, search them, trust them.

The names below are loaded when they are first used: ``import crovca`` alone does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crovca._version import __version__ as __version__

if TYPE_CHECKING:
    from crovca.codes import Codes
    from crovca.data.embeddings import Embeddings, load_embeddings
    from crovca.data.encoded import Encoded
    from crovca.embedding.embed import Embedded, embed
    from crovca.encoders.encoder import Encoder
    from crovca.errors import CrovcaError, CrovcaWarning
    from crovca.evaluation.evaluate import Evaluation, evaluate
    from crovca.hasher import FineTuning, Hasher
    from crovca.index.index import HashIndex
    from crovca.index.results import Neighbors, RangeNeighbors
    from crovca.index.shards import ShardedIndex

_HOMES = {
    "Codes": "crovca.codes",
    "Evaluation": "crovca.evaluation.evaluate",
    "CrovcaError": "crovca.errors",
    "CrovcaWarning": "crovca.errors",
    "Embedded": "crovca.embedding.embed",
    "Embeddings": "crovca.data.embeddings",
    "Encoded": "crovca.data.encoded",
    "Encoder": "crovca.encoders.encoder",
    "FineTuning": "crovca.hasher",
    "HashIndex": "crovca.index.index",
    "Hasher": "crovca.hasher",
    "Neighbors": "crovca.index.results",
    "RangeNeighbors": "crovca.index.results",
    "ShardedIndex": "crovca.index.shards",
    "embed": "crovca.embedding.embed",
    "evaluate": "crovca.evaluation.evaluate",
    "load_embeddings": "crovca.data.embeddings",
}

__all__ = [
    "Codes",
    "CrovcaError",
    "CrovcaWarning",
    "Embedded",
    "Embeddings",
    "Encoded",
    "Encoder",
    "Evaluation",
    "FineTuning",
    "HashIndex",
    "Hasher",
    "Neighbors",
    "RangeNeighbors",
    "ShardedIndex",
    "embed",
    "evaluate",
    "load_embeddings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crovca' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
