"""Several indexes searched as one: shards on several disks, or collections that are kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from crovca.errors import InvalidInputError
from crovca.index.index import HashIndex
from crovca.index.manifest import IdType
from crovca.index.reader import Reader
from crovca.index.view import View


class ShardedIndex(Reader):
    """Read access to several indexes of codes of one length; answers are merged exactly.

    An id should be in one of them only; where it is in several, a search may return it several times.
    """

    def __init__(self, shards: Sequence[HashIndex]) -> None:
        if not shards:
            raise InvalidInputError("give at least one index")
        lengths = sorted({shard.bits for shard in shards})
        if len(lengths) > 1:
            raise InvalidInputError(
                f"the shards' codes differ in length: {' and '.join(map(str, lengths))} bits; "
                "open those of one length together"
            )
        if len({shard.id_type for shard in shards} - {None}) > 1:
            raise InvalidInputError("some shards have strings as ids, others whole numbers")
        if len({shard.path.resolve() for shard in shards}) < len(shards):
            raise InvalidInputError("the same index is given twice")
        self.shards = tuple(shards)
        self.bits = lengths[0]
        self._joined: tuple[tuple[View, ...], View] | None = None

    @classmethod
    def open(cls, paths: Sequence[str | Path], *, skip_damaged: bool = False) -> Self:
        """Open indexes for reading (``HashIndex.open``)."""
        return cls([HashIndex.open(path, skip_damaged=skip_damaged) for path in paths])

    def close(self) -> None:
        """Let go of the files."""
        for shard in self.shards:
            shard.close()

    def refresh(self) -> bool:
        """See what has been written since; True if anything has."""
        return sum(shard.refresh() for shard in self.shards) > 0  # all of them, not up to the first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def id_type(self) -> IdType | None:
        """See ``Reader``."""
        return next((shard.id_type for shard in self.shards if shard.id_type), None)

    def view(self) -> View:
        """See ``Reader``."""
        views = tuple(shard.view() for shard in self.shards)
        joined = self._joined
        if joined is None or joined[0] != views:  # views are equal where they are the same
            segments = [segment for view in views for segment in view.segments]
            origin = views[0].origin
            for view in views[1:]:
                origin.check(view.origin, "codes of one shard")
                origin = origin.known(view.origin)
            if {view.bits for view in views} != {self.bits}:
                raise InvalidInputError("a shard has codes of another length now; open the shards again")
            model = next((view.model for view in views if view.model), None)
            joined = self._joined = views, View(segments, self.bits, self.id_type, model=model, origin=origin)
        return joined[1]
