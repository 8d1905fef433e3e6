"""What can be asked of an index, of several as one, and of a view: exact answers over whatever is stored, filtered,
deleted, cut to a prefix.

Each call takes one ``View`` at its beginning and reads nothing else. A segment's answer comes from its engine; answers
of several are merged by (distance, hash of the id, id), which is the order that one segment of all would give.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes, check_bits
from crovca.errors import InvalidInputError
from crovca.ids import order_by_hash
from crovca.index.conditions import DEFAULT_TIMEOUT
from crovca.index.duplicates import Duplicates, find_duplicates
from crovca.index.engines.base import Found, Mask
from crovca.index.manifest import IdType
from crovca.index.origin import Origin
from crovca.index.originals import NO_ORIGINALS, check_embeddings
from crovca.index.results import Neighbors, RangeNeighbors, StoredItems
from crovca.index.scoring import BitScorer, Float32, Int64
from crovca.index.tuned import settings_of
from crovca.metrics import get_metric

if TYPE_CHECKING:
    from crovca.index.view import View

_FIRST_RANGE = 128


class Condition(NamedTuple):
    """A SQL condition, and the seconds after which it is stopped."""

    where: str
    timeout: float


class Reader(ABC):
    """Read access to codes of one length. Any number of threads may read at once, beside writes and refreshes."""

    bits: int
    where_timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a condition is stopped; set it to allow more."""

    @abstractmethod
    def view(self) -> View:
        """What there is now, and stays so: several calls on a view answer of the same items."""

    @property
    @abstractmethod
    def id_type(self) -> IdType | None:
        """What the ids are; None as long as there are none."""

    def __len__(self) -> int:
        return self.view().items

    # --- searching ---

    def search(
        self,
        queries: npt.ArrayLike | Codes | None = None,
        k: int = 10,
        *,
        embeddings: npt.ArrayLike | None = None,
        rescore: float | Literal["tuned"] | None = None,
        metric: str = "bce",
        where: str | None = None,
        bits: int | None = None,
        engine: str = "auto",
        origin: Origin | None = None,
    ) -> Neighbors:
        """The k nearest items of each query, exactly (but for the engine "inverted").

        Args:
            queries: logits float (q, b), b the length of the codes (or ``bits``); or ``Codes`` for Hamming. None: the
                index's model makes them of ``embeddings``.
            embeddings: float (q, d) of the queries.
            rescore: read so many times k kept embeddings a query, of the items that are nearest by bits and then by
                sketches, and order them by their cosine with the query's; the distances are 1 - cosine then. "tuned":
                the bits and the number that ``tuning`` chose. None: by bits alone.
            k: how many, at least 1.
            metric: a score of ``crovca.metrics`` that needs codes alone: "bce", "hamming", ...
            where: a SQL condition on ``id`` and the metadata, like ``"year < 1960 AND place = 'Bern'"``.
            bits: search by the first so many bits only.
            engine: "auto" picks by length and size; ``stats`` says what it picked.
            origin: what made the queries and the embeddings, where it is known.

        Returns:
            ids and distances (q, min(k, matching items)); ties in the order of ``ids.tie_order``.

        Raises:
            InvalidInputError: queries, embeddings, k, metric, condition or bits that cannot be used; or made by another
                model or encoder than the index's.
        """
        _check_k(k)
        view = self.view()
        if origin is not None:
            view.origin.check(origin, "these queries")
        if rescore == "tuned":
            chosen = settings_of(view.tuned)
            bits, rescore = chosen.bits if bits is None else bits, chosen.oversampling
            embeddings = None if rescore is None and queries is not None else embeddings
        asked = _asked(view, queries, embeddings, rescore)
        if queries is None:
            if view.model is None or asked is None:
                raise InvalidInputError(
                    "the index holds no model (it was built from codes): give the queries' logits or codes"
                    if asked is not None
                    else "queries must be logits or codes; or give embeddings of them (embeddings=)"
                )
            queries = view.model.logits(asked)[:, : view.bits]
        scorer = _scorer(view.bits, queries, metric, bits)
        read = int(k) if rescore is None else math.ceil(rescore * k)
        candidates = read if rescore is None else view.candidates_for(read)
        answers = view.nearest(scorer, candidates, self._condition(where), engine)
        if rescore is not None and asked is not None:
            if len(asked) != len(answers):
                raise InvalidInputError(f"there are {len(asked)} embeddings for {len(answers)} queries")
            answers, metric = view.rescored(asked, answers, int(k), read), "cosine"
        width = min((len(answer.distances) for answer in answers), default=0)
        rows = np.concatenate([answer.rows[:width] for answer in answers]) if answers else np.empty(0, np.int64)
        distances = np.concatenate([answer.distances[:width] for answer in answers] or [np.empty(0, np.float32)])
        shape = len(answers), width
        return _neighbors(view, rows.reshape(shape), distances.reshape(shape), metric)

    def range_search(
        self,
        queries: npt.ArrayLike | Codes,
        radius: float,
        *,
        metric: str = "bce",
        where: str | None = None,
        bits: int | None = None,
        engine: str = "auto",
    ) -> RangeNeighbors:
        """All items at a distance of at most ``radius`` (in the metric's own unit); else as ``search``."""
        if not isinstance(radius, int | float | np.number) or not abs(float(radius)) < 1e38:
            raise InvalidInputError(f"the radius must be a finite number, got {radius!r}")
        view = self.view()
        scorer = _scorer(view.bits, queries, metric, bits)
        results: dict[int, Found] = {}
        pending, k = np.arange(len(scorer.weights)), _FIRST_RANGE
        while len(pending):
            part = scorer.only(pending)
            again = []
            for query, found in zip(pending, view.nearest(part, k, self._condition(where), engine), strict=True):
                if len(found.rows) == k < view.items and found.distances[-1] <= radius:
                    again.append(query)
                    continue
                inside = int(np.searchsorted(found.distances, np.float32(radius), side="right"))
                results[int(query)] = Found(found.rows[:inside], found.distances[:inside])
            pending, k = np.array(again, np.int64), 8 * k
        answers = [results[query] for query in range(len(results))]
        offsets = np.cumsum([0, *(len(answer.rows) for answer in answers)]).astype(np.int64)
        rows = np.concatenate([answer.rows for answer in answers] or [np.empty(0, np.int64)])
        distances = np.concatenate([answer.distances for answer in answers] or [np.empty(0, np.float32)])
        read = partial(view.metadata, rows)
        return RangeNeighbors(view.ids(rows), distances, offsets, read_metadata=read, metric=metric)

    def neighbors_of(self, ids: Any, k: int = 10, *, where: str | None = None, bits: int | None = None) -> Neighbors:
        """The items nearest to stored ones, by Hamming distance between codes, each item itself left out.

        Args:
            ids: one id, or several (q,).
            k, where, bits: as for ``search``.

        Returns:
            As many for each id as there are for all of them: where fewer than k items match the condition, that is
            one less than match, if one of the asked matches itself.

        Raises:
            InvalidInputError: an id that is not in the index.
        """
        _check_k(k)
        view = self.view()
        asked = view.find_all([ids] if isinstance(ids, str | int | np.integer) else ids)
        scorer = _scorer(view.bits, view.codes(asked), "hamming", bits)
        answers = [
            # An item may be beyond the k + 1 nearest: among many at distance 0, or not matching the condition.
            Found(found.rows[found.rows != row], found.distances[found.rows != row])
            for row, found in zip(asked, view.nearest(scorer, int(k) + 1, self._condition(where), "auto"), strict=True)
        ]
        width = min((*(len(found.rows) for found in answers), int(k)))
        rows = np.array([found.rows[:width] for found in answers], np.int64).reshape(len(answers), width)
        distances = np.array([found.distances[:width] for found in answers], np.float32)
        return _neighbors(view, rows, distances.reshape(len(answers), width), "hamming")

    def duplicates(self, radius: int = 0, *, bits: int | None = None) -> Duplicates:
        """Groups of items whose codes are within a Hamming distance of each other (``duplicates.Duplicates``)."""
        view = self.view()
        bits = view.bits if bits is None else check_bits(bits, at_most=view.bits)
        live = view.live_rows()
        rows = np.concatenate(
            [np.empty(0, np.int64), *(start + own for start, own in zip(view.starts, live, strict=False))]
        )
        codes = view.codes(rows).prefix(bits)
        if len(live) > 1:  # in the order of ties, as one segment of all would have them
            order = order_by_hash(view.hashes(rows), lambda chosen: view.ids(rows[chosen]))
            rows, codes = rows[order], codes[order]
        return find_duplicates(codes, radius, lambda chosen: view.ids(rows[chosen]))

    def select(self, where: str) -> npt.NDArray[Any]:
        """The ids of all items for which a SQL condition holds."""
        view = self.view()
        selected = view.select_rows(Condition(where, self.where_timeout)).rows
        rows = [start + own for start, own in zip(view.starts, selected, strict=False)]
        return view.ids(np.concatenate([np.empty(0, np.int64), *rows]))

    def candidates(self, queries: npt.ArrayLike | Codes, k: int, metric: str, bits: int | None) -> list[Found]:
        """As ``search``, the rows of the view in place of ids."""
        view = self.view()
        return view.nearest(_scorer(view.bits, queries, metric, bits), k, None, "auto")

    # --- reading ---

    def get(self, ids: Any) -> StoredItems:
        """The codes and metadata of some items, in the order asked for.

        Raises:
            InvalidInputError: an id that is not in the index.
        """
        view = self.view()
        rows = view.find_all(ids)
        return StoredItems(view.ids(rows), view.codes(rows), view.metadata(rows))

    def contains(self, ids: Any) -> Mask:
        """Which of some ids are in the index: bool (n,)."""
        view = self.view()
        return view.find(view.as_ids(ids)) >= 0

    def __contains__(self, item: object) -> bool:
        view = self.view()
        try:
            return bool((view.find(view.as_ids([item])) >= 0).all())
        except InvalidInputError:  # not an id of this index's kind
            return False

    def batches(self, rows: int = 65536) -> Iterator[StoredItems]:
        """All items that there are now, ``rows`` or fewer at a time, in an order that is fixed until the next write."""
        view = self.view()
        return (
            StoredItems(view.ids(chosen), view.codes(chosen), view.metadata(chosen))
            for start, live in zip(view.starts, view.live_rows(), strict=False)
            for first in range(0, len(live), rows)
            for chosen in [start + live[first : first + rows]]
        )

    def prepare(self, *, metric: str = "bce", bits: int | None = None, engine: str = "auto") -> None:
        """Build the engines now, which the first search would do."""
        view = self.view()
        name = get_metric(metric, stored=True).name
        for _, part, _ in view.searched(view.bits if bits is None else check_bits(bits, at_most=view.bits), None):
            part.engine(name, engine)

    def _condition(self, where: str | None) -> Condition | None:
        return None if where is None else Condition(where, self.where_timeout)

    def engines(self) -> list[dict[str, Any]]:
        """What was built for searching so far: engine, its metrics, bits, rows, seconds to build, bytes of memory."""
        return [one for part in self.view().parts() for one in part.described()]


def _scorer(length: int, queries: npt.ArrayLike | Codes, metric: str, bits: int | None) -> BitScorer:
    """The queries, cut to ``bits``, for an index of codes of ``length`` bits."""
    bits = length if bits is None else check_bits(bits, at_most=length)
    get_metric(metric, stored=True)
    if isinstance(queries, Codes):
        if metric != "hamming":
            raise InvalidInputError(f"codes are compared by metric='hamming'; {metric!r} takes the queries' logits")
        queries = queries.unpack().astype(np.float32) - np.float32(0.5)
    expected = f"(q, {length})" + ("" if bits == length else f" or (q, {bits})")
    try:
        logits = np.asarray(queries)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInputError(f"queries must be logits of shape {expected}: {error}") from error
    if logits.ndim != 2 or logits.dtype.kind not in "fiu":
        raise InvalidInputError(f"queries must be logits of shape {expected}, got {logits.dtype} {logits.shape}")
    if logits.shape[1] not in (length, bits):
        raise InvalidInputError(
            f"queries must be logits of shape {expected}, as the index holds codes of {length} bits; got "
            f"{logits.shape}. If these are embeddings, give hasher.logits(embeddings); if a model's longer logits or "
            f"codes, cut them: logits[:, :{length}], codes.prefix({length})"
        )
    return BitScorer.of(metric, logits[:, :bits], _no_codes(bits))


@cache
def _no_codes(bits: int) -> Codes:
    return Codes(np.empty((0, -(-bits // 8)), np.uint8), bits)


def _asked(view: View, queries: object, embeddings: npt.ArrayLike | None, rescore: float | None) -> Float32 | None:
    """The queries' embeddings, float32 (q, d), where they are of use and can be used."""
    if embeddings is None and rescore is None:
        return None
    if queries is not None and rescore is None:
        raise InvalidInputError("embeddings beside queries are for rescoring: give rescore=4, or leave one of them out")
    values = check_embeddings(embeddings, rescore)
    if rescore is not None and view.segments:
        if view.width is None:
            raise InvalidInputError(NO_ORIGINALS)
        if values.shape[1] != view.width:
            raise InvalidInputError(
                f"the index keeps embeddings of {view.width} numbers, the queries' have {values.shape[1]}: embed them "
                "with the encoder that the index's come from"
            )
    return values


def _neighbors(view: View, rows: Int64, distances: Float32, metric: str) -> Neighbors:
    """Results by row (q, k), with ids, and metadata for whoever asks."""
    ids = view.ids(rows.ravel()).reshape(rows.shape)
    return Neighbors(ids, distances, read_metadata=partial(view.metadata, rows.ravel()), metric=metric)


def _check_k(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1, got {k!r}")
