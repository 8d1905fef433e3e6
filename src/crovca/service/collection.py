"""What is served: an index with the folder of its pictures. Everything a request asks for is a method here."""

from __future__ import annotations

import hashlib
import io
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from crovca.archive.folder import MARKER
from crovca.data.columns import rows_of
from crovca.data.embeddings import unit_rows
from crovca.errors import ConfigError, InvalidInputError
from crovca.files import atomic_file
from crovca.index.index import HashIndex
from crovca.index.memo import Memo
from crovca.index.model import KeptModel
from crovca.index.originals import NO_ORIGINALS
from crovca.index.reader import Condition
from crovca.index.scoring import Float32
from crovca.index.view import View
from crovca.service.map import Tile, map_of
from crovca.service.values import plain

if TYPE_CHECKING:
    from crovca.archive.archive import Archive
    from crovca.archive.duplicates import Decision, Group
    from crovca.archive.queries import QueryModel

LENGTHS = (16, 32, 64, 128, 256)
_MOST = 10_000  # results of one request, those before its cursor included
_CHECK_SECONDS = 1.0  # how often a changed index is looked for
GROUPS = 200  # of duplicates that the page shows
HISTOGRAM = 1000  # nearest items whose distances the page draws
_FACETS = 256  # columns, by state of the index and condition, whose counts are kept
FLOATS = 10_000  # items whose kept embeddings are compared where the answer of the floats is asked for
_MOST_FLOATS = 100_000  # that a query may read


class NotThereError(InvalidInputError):
    """What was asked for by name is not there."""


@dataclass(frozen=True)
class Term:
    """A part of a query. Its logits are added with the weight; a negative one says "not like this".

    Attributes:
        kind: "id", "text", "image" (the bytes of a file), "logits" or "embedding".
        value: of that kind.
        weight: 1 or -1, or any other number.
    """

    kind: Literal["id", "text", "image", "logits", "embedding"]
    value: Any
    weight: float = 1.0


@dataclass(frozen=True)
class Hit:
    """An item that was found: its id, its distance, and its metadata as JSON knows them."""

    id: str | int
    distance: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        hits: nearest first.
        more: whether there are more behind them.
        metric: what the distances are.
        exact: whether it is proven that nothing nearer was left out.
        milliseconds: of encoding the query and of searching.
        generation: of the index that answered.
    """

    hits: list[Hit]
    more: bool
    metric: str
    exact: bool
    milliseconds: float
    generation: int


class Collection:
    """An index that is searched by many at once, and read anew when it changes.

    Args:
        path: folder of the index.
        name: what it is called in addresses; None: the folder's name.
        root: folder that ids are paths below, where pictures are shown from; None: no pictures.
        thumbnails: folder where small pictures are kept; None: they are made anew each time.
        writable: whether items may be added and deleted.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        root: Path | None = None,
        thumbnails: Path | None = None,
        writable: bool = False,
    ) -> None:
        self.index = HashIndex.open(path, writable=writable)
        self.name = name or path.resolve().name
        self.writable = writable
        self.archive = path.parent if (path.parent / MARKER).is_file() else None
        self._root = None if root is None else root.resolve()
        self._thumbnails = thumbnails
        self._checked = time.monotonic()
        self._refreshing = threading.Lock()
        self._encoding = threading.Lock()  # one query is encoded at a time: encoders use every core
        self._model: tuple[KeptModel, QueryModel] | None = None
        self._mapping = threading.Lock()
        self._facets: Memo[Any, list[tuple[Any, int]]] = Memo(_FACETS)
        self._map: tuple[int, list[Tile]] | None = None  # of a generation

    def close(self) -> None:
        """Let go of the index."""
        self.index.close()

    @property
    def pictures(self) -> bool:
        """Whether items can be shown."""
        return self._root is not None

    def describe(self) -> dict[str, Any]:
        """What a client needs to know: size, lengths, metadata's columns, kinds of query."""
        view = self._now()
        stats = self.index.stats()
        kinds = ["id", "logits"]
        if view.model is not None:
            kinds.append("embedding")
            if view.origin.encoder is not None:
                kinds += ["image", "text"] if self._encoder(view).takes_texts else ["image"]
        return {
            "name": self.name,
            "items": stats["items"],
            "bits": self.index.bits,
            "lengths": [length for length in LENGTHS if length < self.index.bits] + [self.index.bits],
            "bytes_per_item": -(-self.index.bits // 8),
            "id_type": stats["id_type"],
            "metadata": stats["metadata"],
            "queries": kinds,
            "embedding_bytes": view.embedding_bytes,
            "pictures": self.pictures,
            "writable": self.writable,
            "generation": self.index.generation,
        }

    def search(
        self,
        terms: Sequence[Term],
        k: int = 10,
        *,
        where: str | None = None,
        bits: int | None = None,
        max_distance: float | None = None,
        rescore: float | None = None,
        offset: int = 0,
    ) -> Answer:
        """The items nearest to all terms together.

        One id alone is searched by its code (Hamming distance), and left out of its own answer; everything else by
        logits (binary cross-entropy), an item's being +1 and -1. With ``rescore``, so many times ``k`` items are found
        by bits, as ``HashIndex.search`` does, and ordered by the cosine of their kept embeddings with the terms': all
        pages of the answer are of these, so that no item is on two of them or on none.

        Raises:
            InvalidInputError: no terms, an unknown id, a condition or number that cannot be used; no embeddings to
                rescore by.
            ConfigError: the index has no model for this kind of query.
        """
        if not terms:
            raise InvalidInputError("a query needs at least one term: an id, a text, an image, logits or an embedding")
        if k < 1 or offset < 0 or offset + k > _MOST:
            raise InvalidInputError(
                f"k and what lies before it must be from 1 to {_MOST:,} together, got {offset + k:,}"
            )
        view = self._now()
        started = time.perf_counter()
        wanted = offset + k + 1
        candidates = k if rescore is None else rescore * k
        own = self._id(terms[0].value) if len(terms) == 1 and terms[0].kind == "id" and terms[0].weight > 0 else None
        if own is not None and rescore is None:
            found = view.neighbors_of([own], wanted, where=where, bits=bits)
        else:
            queries = [self._encoded(view, term) for term in terms]
            weights = np.array([term.weight for term in terms], np.float32)
            logits = weights @ np.stack([logits for logits, _ in queries]) / len(terms)
            rescoring: dict[str, Any] = {}
            asked = wanted + 1
            if rescore is not None:
                if not 1 <= candidates <= _MOST_FLOATS:
                    raise InvalidInputError(
                        f"rescoring reads up to {_MOST_FLOATS:,} embeddings; rescore={rescore} of {k:,} items "
                        "would be more"
                    )
                embedding = weights @ _unit_rows_of(view, [embedding for _, embedding in queries])
                pool = math.ceil(candidates) + (own is not None)
                asked = min(wanted + 1, pool)
                rescoring = {"embeddings": embedding[None], "rescore": max(1.0, (pool - 0.5) / asked)}  # rounded up
            found = view.search(logits[None], asked, where=where, bits=bits, **rescoring)
        others = found.ids[0] != own if own is not None else np.ones(found.ids.shape[1], bool)
        ids, distances = found.ids[0][others][:wanted], found.distances[0][others][:wanted]
        if max_distance is not None:
            near = int(np.searchsorted(distances, np.float32(max_distance), side="right"))
            ids, distances = ids[:near], distances[:near]
        shown = slice(offset, offset + k)
        hits = _hits(view, ids[shown], distances[shown])
        elapsed = 1000 * (time.perf_counter() - started)
        exact = rescore is None or candidates >= view.items
        return Answer(hits, len(ids) > offset + k, found.metric, exact, elapsed, view.generation)

    def compare_lengths(self, terms: Sequence[Term], k: int = 10, *, where: str | None = None) -> list[dict[str, Any]]:
        """The answer at each length, then of the floats where they are kept; what each keeps of the last one's answer,
        its bytes and milliseconds. Of more than ``FLOATS`` items, those nearest by bits are compared as floats."""
        about = self.describe()
        rows = []
        for length in [*about["lengths"], *([None] if about["embedding_bytes"] else [])]:
            asked: dict[str, Any] = {"bits": length} if length else {"rescore": max(1.0, FLOATS / k)}
            answer = self.search(terms, k, where=where, **asked)
            size = -(-length // 8) if length else about["embedding_bytes"]
            rows.append({"bits": length, "bytes": size, "milliseconds": answer.milliseconds, "hits": answer.hits})
        best = {hit.id for hit in rows[-1]["hits"]}
        for row in rows:
            row["kept"] = len(best & {hit.id for hit in row["hits"]}) / len(best) if best else None
        return rows

    def distances(self, terms: Sequence[Term], **asked: Any) -> list[float]:
        """Distances of the nearest items, for a histogram; asked as ``search`` is."""
        return [hit.distance for hit in self.search(terms, HISTOGRAM, **asked).hits]

    def holds(self, id: str) -> bool:
        """Whether there is such an item."""
        return self._id(id) in self._now()

    def ids_like(self, part: str, most: int = 12) -> list[str]:
        """A few ids that contain a text, in small letters or large ones."""
        view = self._now()
        if self.index.id_type == "int64":
            return []
        literal = part.replace("'", "''")
        rows = view.select_rows(Condition(f"contains(lower(id), lower('{literal}'))", view.where_timeout)).rows
        found = [start + one[:most] for start, one in zip(view.starts, rows, strict=True)]
        return sorted(map(str, view.ids(np.concatenate(found))))[:most] if found else []

    def item(self, id: str) -> Hit:
        """One item; raises NotThereError where it is not there."""
        view, asked = self._now(), self._id(id)
        if asked not in view:
            raise NotThereError(f"there is no item {id!r}")
        return _hits(view, np.array([asked]), np.zeros(1, np.float32))[0]

    def map(self) -> list[Tile]:
        """A picture for each part of the collection, like beside like; made once for each state of the index."""
        view = self._now()
        with self._mapping:
            if self._map is None or self._map[0] != view.generation:
                self._map = view.generation, map_of(view)
            return self._map[1]

    def facets(
        self, column: str, *, where: str | None = None, most: int = 50, few: bool = False
    ) -> list[tuple[Any, int]]:
        """Values of a metadata column with their numbers of items, the most frequent first; counted once for each
        state of the index. With ``few``, none where there are more than ``most``.
        """
        view = self._now()
        known = self.index.stats()["metadata"]
        if column not in known:
            raise NotThereError(f"there is no column {column!r}; the metadata have {sorted(known)}")

        def count() -> list[tuple[Any, int]]:
            counts: dict[Any, int] = {}
            for value, items in view.most_frequent(column, most, where, few=few):
                counts[plain(value)] = counts.get(plain(value), 0) + items  # JSON has one word for NaN and infinity
            return list(counts.items())

        return self._facets.get((view.generation, column, where, most, few), count)

    def duplicates(self, radius: int = 0, *, most: int = GROUPS) -> list[list[tuple[str | int, int]]]:
        """Groups of items whose codes differ in a few bits, each with its bits to the first; the largest first."""
        found = self._now().duplicates(radius)
        pairs = zip(found.groups[:most], found.distances[:most], strict=True)
        return [list(zip(ids.tolist(), bits.tolist(), strict=True)) for ids, bits in pairs]

    def embedding_of_image(self, image: bytes) -> Float32:
        """The embedding (d,) of an image file, by the encoder of the index."""
        found = self._encoded(self._now(), Term("image", image))[1]
        assert found is not None
        return found

    def add(self, ids: Any, *, logits: Any = None, embeddings: Any = None, metadata: Any = None) -> int:
        """Add items, in the place of those with the same ids; how many were replaced.

        Without logits the index's model makes them of the embeddings. An index that keeps embeddings wants them.
        """
        from crovca.codes import Codes

        kept = None if embeddings is None else np.asarray(embeddings, np.float32)
        if logits is None:
            if kept is None:
                raise InvalidInputError("give the items' embeddings, or their logits")
            logits = self._encoder(self.index.view()).of_embeddings(kept)
        codes = Codes.from_logits(np.asarray(logits, np.float32))
        return self.index.upsert(ids, codes, metadata, kept)

    def delete(self, ids: Any) -> int:
        """Delete items; how many there were."""
        return self.index.delete(ids)

    def picture(self, id: str, *, side: int) -> bytes:
        """A picture of an item as WebP, at most ``side`` pixels wide and high; made once.

        The id names a file below the root only where the index holds it; no path from outside is ever followed.
        """
        one = self._id(id)
        if one not in self.index:
            raise NotThereError(f"there is no item {id!r}")
        if self._root is None:
            raise NotThereError("this collection has no pictures: serve it with --root")
        file = (self._root / str(one)).resolve()
        if not file.is_relative_to(self._root) or not file.is_file():
            raise NotThereError(f"the file of {id!r} is not there")
        status = file.stat()
        key = hashlib.blake2b(
            f"{self.index.uuid} {one} {status.st_size} {status.st_mtime_ns} {side}".encode(), digest_size=16
        ).hexdigest()
        kept = None if self._thumbnails is None else self._thumbnails / key[:2] / f"{key}.webp"
        if kept is not None and kept.is_file():
            return kept.read_bytes()
        content = _thumbnail(file, side)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(kept) as temporary:
                temporary.write_bytes(content)
        return content

    # --- inside ---

    def confirmed_duplicates(self) -> tuple[list[Group], list[Decision]] | None:
        """What ``crovca duplicates`` found last and what was decided of it; None where this is no archive, or it was
        not asked yet."""
        if self.archive is None:
            return None
        from crovca.archive.duplicates import last_found  # loads torch

        return last_found(self.archive)

    def decide(self, id: str, others: Sequence[str], *, same: bool) -> None:
        """Remember a decision on duplicates; raises what ``archive.duplicates.decide`` does."""
        from crovca.archive.duplicates import decide

        decide(self._opened_archive(), id, others, same=same)

    def take_back(self, number: int) -> None:
        """Forget a decision on duplicates."""
        from crovca.archive.duplicates import take_back

        take_back(self._opened_archive(), number)

    def _opened_archive(self) -> Archive:
        if self.archive is None:
            raise InvalidInputError("this is no archive: decisions are kept in one")
        from crovca.archive.archive import Archive

        return Archive.open(self.archive)

    def _now(self) -> View:
        """The state to answer from, of one model and its codes; what others wrote is looked for once a second."""
        due = not self.writable and time.monotonic() - self._checked >= _CHECK_SECONDS
        if due and self._refreshing.acquire(blocking=False):
            try:
                self.index.refresh()
                self._checked = time.monotonic()
            finally:
                self._refreshing.release()
        return self.index.view()

    def _id(self, value: Any) -> Any:
        if self.index.id_type != "int64" or isinstance(value, int):
            return value if self.index.id_type == "int64" else str(value)
        try:
            return int(value)
        except ValueError:
            raise InvalidInputError(f"the ids of this collection are whole numbers, got {value!r}") from None

    def _encoded(self, view: View, term: Term) -> tuple[Float32, Float32 | None]:
        """The logits (bits,) of a term, and its embedding (d,) where there is one."""
        embedding: Float32 | None = None
        if term.kind == "id":
            row = view.find_all([self._id(term.value)])
            logits = np.where(view.codes(row).unpack()[0], np.float32(1), np.float32(-1))
            embedding = view.kept(row)[0] if view.width else None
        elif term.kind == "logits":
            logits = np.asarray(term.value, np.float32)
        else:
            with self._encoding:
                encoder = self._encoder(view)
                if term.kind == "text":
                    embedding = encoder.embed_texts([str(term.value)])[0]
                elif term.kind == "image":
                    embedding = encoder.embed_images([term.value])[0]
                else:
                    embedding = np.asarray(term.value, np.float32)
                logits = encoder.of_embeddings(embedding[None], texts=term.kind == "text")[0]
        if logits.shape != (view.bits,):
            raise InvalidInputError(f"the collection's logits are {view.bits} numbers, got shape {logits.shape}")
        return logits, embedding

    def _encoder(self, view: View) -> QueryModel:
        """What encodes queries for a state: its own model, loaded once."""
        from crovca.archive.queries import QueryModel  # loads torch

        kept = view.model
        if kept is None:
            raise ConfigError(f"{self.name}: the index holds no model, so queries of this kind cannot be encoded here")
        known = self._model
        if known is None or known[0] is not kept:
            known = self._model = kept, QueryModel(kept.hasher(), view.origin.encoder)
        return known[1]


def by_name(collections: Sequence[Collection]) -> dict[str, Collection]:
    """Collections by their names; raises ConfigError where two have the same."""
    served = {one.name: one for one in collections}
    if len(served) < len(collections):
        raise ConfigError("two collections have the same name; give them others: NAME=FOLDER")
    return served


def _hits(view: View, ids: npt.NDArray[Any], distances: npt.NDArray[np.float32]) -> list[Hit]:
    """Found items with their metadata."""
    if not len(ids):
        return []
    table = view.get(ids).metadata
    rows = [{}] * len(ids) if table is None else rows_of(table)
    return [
        Hit(one, float(distance), {name: plain(value) for name, value in row.items() if value is not None})
        for one, distance, row in zip(ids.tolist(), distances, rows, strict=True)
    ]


def _unit_rows_of(view: View, embeddings: Sequence[Float32 | None]) -> Float32:
    """The terms' embeddings (t, d), each of length 1, to be compared with those that the index keeps."""
    if view.width is None:
        raise InvalidInputError(NO_ORIGINALS)
    for one in embeddings:
        if one is None:
            raise InvalidInputError("logits cannot be rescored: give an embedding, or what it is of")
        if one.shape != (view.width,):
            raise InvalidInputError(f"the index keeps embeddings of {view.width} numbers, the query's is {one.shape}")
    return unit_rows(np.stack([one for one in embeddings if one is not None]))


def _thumbnail(file: Path, side: int) -> bytes:
    from crovca.sources.decode import decode
    from crovca.sources.source import read_file

    image = decode(read_file(file)).image
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()
