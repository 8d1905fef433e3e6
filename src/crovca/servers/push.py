"""Bringing a server to the state of an index: batched, resumable, and without effect where nothing changed.

The server remembers which index in which state was pushed and how many batches of it have arrived
(``state.PushState``). A batch is sent only as far as it differs: every stored item has a digest of its code and
metadata, and what has the same one is left alone. When all batches have arrived, ids that the index does
not have are removed, and the push is marked complete. So

* a rerun of a complete push reads the state, compares the number of items, and ends;
* a rerun of a push that was killed goes on at its batch; what had arrived of that batch is not sent again;
* a rerun after adds, upserts and deletes sends the difference alone.

Nothing is acknowledged before the server has it, and every step may be done twice. During a push that changes
a collection, searches see some of the new state and some of the old.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crovca.errors import InvalidInputError, ServerError
from crovca.index.originals import NO_ORIGINALS
from crovca.servers.base import Server
from crovca.servers.connection import create
from crovca.servers.kept import with_kept
from crovca.servers.rows import Ids, IdType, ServerRows, check_ids
from crovca.servers.state import PushState

if TYPE_CHECKING:
    from crovca.index.index import HashIndex

Progress = Callable[[int, int], None]  # items done, items in all


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        items: in the index, and on the server now.
        written: items that were sent, because they were new or had changed.
        deleted: items that were removed from the server.
        resumed_at: items that an earlier, killed push had finished.
        unchanged: the server had this state already.
    """

    items: int
    written: int
    deleted: int
    resumed_at: int
    unchanged: bool


def push_to(
    index: HashIndex,
    url: str,
    *,
    batch_size: int = 65_536,
    force: bool = False,
    embeddings: bool = False,
    progress: Progress | None = None,
) -> PushResult:
    """``push`` to the collection at an address (``connection``), which is made if there is none."""
    id_type = _checked(index, batch_size)
    with closing(create(url, bits=index.bits, id_type=id_type, exist_ok=True)) as cluster:
        return push(index, cluster, batch_size=batch_size, force=force, embeddings=embeddings, progress=progress)


def push(
    index: HashIndex,
    cluster: Server,
    *,
    batch_size: int = 65_536,
    force: bool = False,
    embeddings: bool = False,
    progress: Progress | None = None,
) -> PushResult:
    """Make the collection hold the items of the index and no others.

    Args:
        index: must not be written to meanwhile.
        cluster: a collection for codes of that length and ids of that type.
        batch_size: items a batch.
        force: also into a collection that holds another index's items, or some that were not pushed; those that
            this index does not have are removed.
        embeddings: push the embeddings along that the index keeps, for ``search(rescore=)`` on the server; a push
            without removes them.
        progress: called with the items that are done and all there are, after each batch.

    Raises:
        InvalidInputError: the index has no items, or keeps no embeddings to push along.
        ServerError: the server cannot be reached or refuses; the collection is of other codes, or another's;
            another push is running.
    """
    id_type = _checked(index, batch_size)
    if embeddings and index.view().width is None:
        raise InvalidInputError(NO_ORIGINALS)
    if (cluster.bits, cluster.id_type) != (index.bits, id_type):
        raise ServerError(
            f"the collection holds codes of {cluster.bits} bits with ids of type {cluster.id_type}, the index "
            f"{index.bits} bits and {id_type}; push into another collection"
        )
    with cluster.push_lock():
        return _push(index, cluster, batch_size, force, embeddings, progress or (lambda done, total: None))


def _push(
    index: HashIndex, cluster: Server, batch_size: int, force: bool, embeddings: bool, progress: Progress
) -> PushResult:
    before, stored = cluster.read_push(), cluster.count()
    if not force:
        _refuse_another(index, before, stored)
    state = PushState(index.uuid, index.generation, batch_size, embeddings=embeddings, digest=index.digest)
    if before is not None and state == replace(before, batch_size=batch_size, batches=0, complete=False):
        if before.complete and stored == len(index):
            progress(len(index), len(index))
            return PushResult(len(index), 0, 0, 0, True)
        if before.batch_size == batch_size and not before.complete:
            state = before
    cluster.write_push(state)  # before the first item: a killed push must not look like another's items
    first = state.batches
    done = written = resumed_at = 0
    ids: list[Ids] = []
    for number, batch in enumerate(index.batches(batch_size)):
        ids.append(check_ids(batch.ids, cluster.id_type))
        done += len(batch.ids)
        if number < first:
            resumed_at = done
            continue
        metadata = batch.metadata
        if embeddings:
            view = index.view()
            metadata = with_kept(metadata, view.originals().kept(view.find_all(batch.ids)))
        rows = ServerRows.of(batch.ids, batch.codes, metadata, bits=cluster.bits, id_type=cluster.id_type)
        if stored:
            rows = rows[_differs(rows, *cluster.digests(rows.ids))]
        if len(rows):
            cluster.upsert_rows(rows)
        written += len(rows)
        state = replace(state, batches=number + 1)
        cluster.write_push(state)
        progress(done, len(index))
    deleted = _delete_others(cluster, ids, done)
    cluster.write_push(replace(state, complete=True))
    return PushResult(done, written, deleted, resumed_at, False)


def _checked(index: HashIndex, batch_size: int) -> IdType:
    """The type of the index's ids."""
    if batch_size < 1:
        raise InvalidInputError(f"the batch size must be at least 1, got {batch_size}")
    if index.id_type is None:
        raise InvalidInputError("nothing was ever added to this index: there is nothing to push")
    return index.id_type


def _refuse_another(index: HashIndex, before: PushState | None, stored: int) -> None:
    if before is not None and before.index != index.uuid:
        raise ServerError(
            "the collection holds what was pushed from another index, which this push would remove; "
            "push into another collection, or --force"
        )
    if before is None and stored:
        raise ServerError(
            f"the collection holds {stored:,} items that were not pushed, which this push would remove where the "
            "index does not have them; push into another collection, or --force"
        )


def _differs(rows: ServerRows, ids: Ids, digests: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which rows the server does not have just so."""
    if len(ids) == 0:
        return np.ones(len(rows), np.bool_)
    order = np.argsort(ids)
    ids, digests = ids[order], digests[order]
    at = np.minimum(np.searchsorted(ids, rows.ids), len(ids) - 1)
    same: npt.NDArray[Any] = (ids[at] == rows.ids) & (digests[at] == rows.digests)
    return ~same


def _delete_others(cluster: Server, parts: list[Ids], count: int) -> int:
    """Remove what the index does not have; the server has all that it does, so the numbers tell if there is any."""
    if cluster.count() == count:
        return 0
    ours = pa.chunked_array([pa.array(part) for part in parts]).combine_chunks() if parts else None
    doomed: list[Ids] = []
    for ids in cluster.stored_ids():
        known = False if ours is None else pc.is_in(pa.array(ids), value_set=ours).to_numpy(zero_copy_only=False)
        doomed.append(ids[~np.broadcast_to(known, len(ids))])
    for part in doomed:
        cluster.delete(part)
    left = cluster.count()
    if left != count:
        raise ServerError(
            f"the collection holds {left:,} items after the push, the index {count:,}: something else writes to "
            "it; push again when that has ended"
        )
    return sum(len(part) for part in doomed)
