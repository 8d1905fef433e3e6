"""What every server can do, and the exact scores that none of them has.

A server finds candidates by what it can compute and returns them with their bits; the scores of
``crovca.metrics`` are computed here, over those candidates (``overfetch`` of them). What was not returned is
known to be no nearer than a bound, so where the k-th score is below it, the answer is proven to be
the exact one, and says so (``ServerNeighbors.proven``). The bounds are in ``bounds``. Where it is not
proven, ``exact=True`` asks the server for every item that could still be among the k.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes
from crovca.data.embeddings import unit_rows
from crovca.errors import ConfigError, InvalidInputError, ServerError
from crovca.ids import tie_order
from crovca.index.originals import check_embeddings, cosines
from crovca.index.results import Neighbors, StoredItems
from crovca.index.scoring import BitScorer
from crovca.metrics import get_metric
from crovca.servers.bounds import Query
from crovca.servers.kept import kept_embeddings
from crovca.servers.rows import Ids, IdType, ServerRows, check_ids
from crovca.servers.state import PushState

_Connection = TypeVar("_Connection", bound=Any)
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class ServerNeighbors(Neighbors):
    """``Neighbors`` with what is known of their exactness.

    Attributes:
        proven: bool (q,), whether the answer (rescored: the candidates) is proven to be the exact one; where it is not,
            it may be.
        candidates: int64 (q,), how many items the server returned to choose from.
    """

    proven: npt.NDArray[np.bool_]
    candidates: npt.NDArray[np.int64]


class Server(ABC):
    """A collection of codes on a server: what all of them do.

    Opened and created by ``connection``. Every method raises ServerError where the server cannot be
    reached or refuses, and InvalidInputError for arguments that cannot be used. A new server defines what is abstract
    here.

    Attributes:
        bits: length of the codes.
        id_type: what ids are.
    """

    bits: int
    id_type: IdType
    most_results: int = sys.maxsize
    """Items that the server returns to one query at most."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    @abstractmethod
    def open_url(cls, url: str, *, approximate: bool = False) -> Server:
        """Open the collection at an address; see ``connection.connect``."""

    @classmethod
    @abstractmethod
    def create_url(cls, url: str, *, bits: int, id_type: IdType, exist_ok: bool) -> Server:
        """Make the collection at an address; see ``connection.create``."""

    def upsert(self, ids: npt.ArrayLike, codes: Codes, metadata: pa.Table | None = None) -> None:
        """Store items; one whose id is there already is replaced whole, its metadata too."""
        self.upsert_rows(ServerRows.of(ids, codes, metadata, bits=self.bits, id_type=self.id_type))

    @abstractmethod
    def delete(self, ids: npt.ArrayLike) -> None:
        """Remove items; ids that are not there are passed over."""

    def search(
        self,
        logits: npt.ArrayLike | Codes,
        k: int = 10,
        *,
        metric: str = "bce",
        where: str | None = None,
        overfetch: int | None = None,
        exact: bool = False,
        rescore: float | None = None,
        embeddings: npt.ArrayLike | None = None,
    ) -> ServerNeighbors:
        """The k nearest items of each query.

        Args:
            logits: float (q, bits); Codes are allowed for ``metric="hamming"``.
            k: how many.
            metric: a score of ``crovca.metrics`` that needs codes alone.
            where: a condition on the metadata in the server's own language.
            overfetch: how many candidates to rescore a query; None: ``default_overfetch(k)``.
            exact: fetch more where the answer is not proven, until it is.
            rescore: take so many times k candidates by codes, and order them by the cosine of the embeddings that were
                pushed along (``push(embeddings=True)``) with those of the queries; the distances are 1 - cosine then.
                An index finds more with the same number, as its sketches choose among more candidates.
            embeddings: float (q, d) of the queries, for ``rescore``.

        Raises:
            InvalidInputError: besides the usual, more results or candidates than the server returns to one query.
            ServerError: besides the usual, with ``exact=True``, where a proof needs more than it returns.
        """
        with self._reading(where):
            if rescore is None:
                if embeddings is not None:
                    raise InvalidInputError(
                        "embeddings beside queries are for rescoring: give rescore=4, or leave them out"
                    )
                return search_by_rescoring(self, logits, k, metric, where, overfetch, exact)
            default_overfetch(k)  # a number that can be one
            asked = check_embeddings(embeddings, rescore)
            found = search_by_rescoring(self, logits, math.ceil(rescore * k), metric, where, overfetch, exact)
            return self._rescored(found, asked, int(k))

    def _rescored(self, found: ServerNeighbors, embeddings: npt.NDArray[np.float32], k: int) -> ServerNeighbors:
        if len(embeddings) != len(found):
            raise InvalidInputError(f"there are {len(embeddings)} embeddings for {len(found)} queries")
        ids, place = np.unique(found.ids, return_inverse=True)
        if not len(ids):
            return found
        kept = kept_embeddings(self._get(ids).metadata, embeddings.shape[1])
        rows = place.reshape(found.ids.shape)
        answers = []
        for unit, mine in zip(unit_rows(embeddings), rows, strict=True):
            distances = (1 - cosines(kept[mine], unit)).astype(np.float32)
            order = np.lexsort((tie_order(ids[mine], len(mine)), distances))[:k]
            answers.append((ids[mine[order]], distances[order]))
        chosen, distances = (np.stack(side) for side in zip(*answers, strict=True))
        return replace(found, ids=chosen, distances=distances, metric="cosine")

    def get(self, ids: npt.ArrayLike) -> StoredItems:
        """The items with these ids, in this order; InvalidInputError names the first that is not there."""
        asked = check_ids(ids, self.id_type)
        with self._reading():
            return self._get(asked)

    @abstractmethod
    def count(self) -> int:
        """How many items are stored."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    # For a search:

    @abstractmethod
    def _get(self, asked: Ids) -> StoredItems:
        """``get``, within ``_reading``."""

    @abstractmethod
    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        """For each query, ``count`` items that seem nearest, or all that match if there are fewer."""

    @abstractmethod
    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        """All items that may be within this distance of one query (inclusive) and maybe others, part by part."""

    def _reading(self, where: str | None = None) -> AbstractContextManager[None]:
        """All reads within it are of one state, where the server can do that."""
        return nullcontext()

    # For a push (``push``):

    @abstractmethod
    def upsert_rows(self, rows: ServerRows) -> None:
        """Store items that are checked already, replacing those that are there."""

    @abstractmethod
    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        """ids and digests of those of these items that are stored, in no order."""

    @abstractmethod
    def stored_ids(self) -> Iterator[Ids]:
        """All ids, part by part, in no order; nothing may be written meanwhile."""

    def push_lock(self) -> AbstractContextManager[None]:
        """Keep other pushes out, where the server can."""
        return nullcontext()

    @abstractmethod
    def read_push(self) -> PushState | None:
        """How far a push came; None where nothing was pushed."""

    @abstractmethod
    def write_push(self, state: PushState) -> None:
        """Remember how far a push came."""

    def _check_holds(self, bits: int, id_type: IdType, kind: str, name: str) -> None:
        """ServerError unless this collection, a ``kind`` of that name, holds such codes."""
        if (self.bits, self.id_type) != (bits, id_type):
            raise ServerError(
                f"the {kind} {name!r} holds codes of {self.bits} bits with ids of type {self.id_type}, "
                f"expected {bits} bits and {id_type}; give another {kind}"
            )


class FileServer(Server):
    """A collection in a file or folder, opened in this process: ``SCHEME:///path/to/file?table=name``."""

    @classmethod
    @abstractmethod
    def create(cls, path: str, table: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False) -> Self:
        """Make an empty table and open it; the file or folder is made if there is none.

        Args:
            path: of the file or folder.
            table: its name; of LanceDB and Qdrant letters, digits, underscores, hyphens and periods.
            bits: length of the codes.
            id_type: what ids are.
            exist_ok: take a table that is there already, if it holds such codes.

        Raises:
            ConfigError: a name that cannot be one.
            ServerError: the file cannot be opened or written, or there is such a table already.
        """

    @classmethod
    @abstractmethod
    def open(cls, path: str, table: str) -> Self:
        """Open a table that ``create`` made."""

    @classmethod
    def open_url(cls, url: str, *, approximate: bool = False) -> Self:
        """See ``Server``."""
        if approximate:
            raise ConfigError("approximate search is PostgreSQL's (pgvector) alone; leave it out for a file")
        return cls.open(*place_of(url))

    @classmethod
    def create_url(cls, url: str, *, bits: int, id_type: IdType, exist_ok: bool) -> Self:
        """See ``Server``."""
        return cls.create(*place_of(url), bits=bits, id_type=id_type, exist_ok=exist_ok)


@contextmanager
def closed_on_error(connection: _Connection) -> Iterator[_Connection]:
    """A connection that is closed where the block fails."""
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def split_url(url: str) -> SplitResult:
    """The parts of an address; ConfigError where it is none."""
    try:
        return urlsplit(url)
    except ValueError as error:  # brackets that are no IPv6 address, for one
        raise ConfigError(f"the address of a cluster cannot be read ({error})") from None


def place_of(url: str) -> tuple[str, str]:
    """Path and table of an address; ConfigError where it has not both, or more, or the name is ours."""
    scheme, _, rest = url.partition("://")
    path, _, query = rest.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True)
    if not path or "\0" in unquote(path) or [name for name, _ in parameters] != ["table"] or not parameters[0][1]:
        raise ConfigError(
            f"the address of a file has to name the file and one table; expected {scheme}:///path/to/file?table=name"
        )
    table = parameters[0][1]
    if table.lower().startswith("crovca_"):
        raise ConfigError(f"the table {table!r} has a name as only crovca's own tables have; give another one")
    return str(Path(unquote(path)).absolute()), table


@dataclass(frozen=True)
class ServerCandidates:
    """What a server returned to one query.

    Attributes:
        ids: (n,).
        codes: n codes.
        bound: no item that matches and was not returned has a distance below this: infinity where all were
            returned, minus infinity where nothing is known (an approximate index answered).
    """

    ids: Ids
    codes: Codes
    bound: np.float32


ALL_RETURNED = np.float32(np.inf)
NOTHING_KNOWN = np.float32(-np.inf)


def default_overfetch(k: int) -> int:
    """ServerCandidates a query where the caller does not say: at least 1,000, and 20 for each result."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1, got {k!r}")
    return max(1000, 20 * int(k))


def search_by_rescoring(
    engine: Server,
    logits: npt.ArrayLike | Codes,
    k: int,
    metric: str,
    where: str | None,
    overfetch: int | None,
    exact: bool,
) -> ServerNeighbors:
    """The search of ``Server``, on top of what the server can do."""
    checked = _query_logits(logits, metric, engine.bits)
    usual = min(default_overfetch(k), engine.most_results)
    if max(k, overfetch or 0) > engine.most_results:
        raise InvalidInputError(
            f"the server returns at most {engine.most_results:,} items a query, got k = {k}, overfetch = {overfetch}"
        )
    overfetch = usual if overfetch is None else overfetch
    if overfetch < k:
        raise InvalidInputError(f"overfetch must be at least k = {k}, got {overfetch}")
    queries = [Query.of(row, metric) for row in checked]
    found = engine.nearest(queries, overfetch, where)
    answers = [_answer(engine, query, part, int(k), where, exact) for query, part in zip(queries, found, strict=True)]
    ids, distances, proven, candidates = zip(*answers, strict=True)
    return ServerNeighbors(np.stack(ids), np.stack(distances), np.array(proven), np.array(candidates, np.int64))


def _answer(
    engine: Server, query: Query, found: ServerCandidates, k: int, where: str | None, exact: bool
) -> tuple[Ids, npt.NDArray[np.float32], bool, int]:
    """One query's ids, distances, whether they are proven, and how many candidates there were."""
    ids, codes, distances = _best(found.ids, found.codes, query, k)
    worst = distances[-1] if len(distances) == k else np.float32(np.inf)
    # At the bound itself an item may tie with the last one and win by the tie rule.
    proven = bool(found.bound == ALL_RETURNED or worst < found.bound)
    if proven or not exact:
        return ids, distances, proven, len(found.ids)
    seen = len(found.ids)
    ids, codes, distances = ids[:0], codes[:0], distances[:0]
    for more_ids, more_codes in engine.within(query, worst, where):
        seen += len(more_ids)
        joined = np.concatenate([ids, more_ids])
        ids, codes, distances = _best(joined, Codes.concatenate([codes, more_codes]), query, k)
    return ids, distances, True, seen


def _best(ids: Ids, codes: Codes, query: Query, k: int) -> tuple[Ids, Codes, npt.NDArray[np.float32]]:
    """The k best of some items for one query, with their exact distances, ties by the fixed rule."""
    distances = BitScorer.of(query.metric, query.logits[None, :], codes).distances(slice(None))[0]
    rows = np.arange(len(ids))
    if k < len(ids):  # ties cost a hash an item: only for those that can be among the k
        rows = np.flatnonzero(distances <= np.partition(distances, k - 1)[k - 1])
    order = np.lexsort((tie_order(ids[rows], len(rows)), distances[rows]))[:k]
    rows = rows[order]
    return ids[rows], codes[rows], distances[rows]


def _query_logits(logits: npt.ArrayLike | Codes, metric: str, bits: int) -> npt.NDArray[np.float32]:
    """Checked float32 (q, bits), q at least 1."""
    get_metric(metric, stored=True)
    if isinstance(logits, Codes):
        if metric != "hamming":
            raise InvalidInputError(f"codes as queries have no {metric!r} distance: give logits, or metric='hamming'")
        logits = logits.unpack().astype(np.float32) - np.float32(0.5)
    values = np.asarray(logits, np.float32)
    BitScorer.of(metric, values, Codes(np.zeros((0, -(-bits // 8)), np.uint8), bits))  # raises for bad shapes
    if len(values) == 0:
        raise InvalidInputError("there are no queries")
    return values


def in_order(asked: Ids, found: Mapping[Any, _Found]) -> list[_Found]:
    """What was found, by id, in the order that was asked for; InvalidInputError names the first that is not there."""
    for one in asked.tolist():
        if one not in found:
            raise InvalidInputError(f"there is no item with the id {one!r}")
    return [found[one] for one in asked.tolist()]
