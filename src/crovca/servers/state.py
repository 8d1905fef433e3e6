"""How far a push came, as it is remembered on the server."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from crovca.errors import ServerError

_FORMAT = 1


@dataclass(frozen=True)
class PushState:
    """The last push into a collection.

    Attributes:
        index: identity of the index that was pushed.
        generation: its state.
        batch_size: items a batch.
        batches: how many batches of that state are on the server.
        complete: whether all of it is, and nothing else.
        embeddings: whether kept embeddings are pushed along.
        digest: of that state: copies of one index that were written to since may have the same generation.
    """

    index: str
    generation: int
    batch_size: int
    batches: int = 0
    complete: bool = False
    embeddings: bool = False
    digest: str = ""

    def to_json(self) -> str:
        """As text."""
        return json.dumps({"format": _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> PushState:
        """Read what ``to_json`` wrote; ServerError where it is anything else."""
        try:
            content = json.loads(text)
            if content.pop("format") != _FORMAT:
                raise ValueError("written by a newer crovca")
            return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerError(
                f"what the server remembers of an earlier push cannot be read ({error}); push into another collection"
            ) from None
