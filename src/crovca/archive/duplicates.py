"""Duplicates of an archive: candidates by embeddings, confirmed by pixels, with a proposal what to keep.

What is found out is kept in ARCHIVE/duplicates.sqlite, by the content of the files: small gray pictures, so that
nothing is decoded twice; which pictures were asked for their nearest ones, and what pairs agree on, so that only pairs
with something new are looked at; and what a person has said are no duplicates. Nothing is ever deleted.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from crovca.archive.archive import Archive
from crovca.archive.pixels import Agreement, Comparer, Gray, aligns, gray, shrink
from crovca.data.embeddings import unit_rows
from crovca.errors import ConfigError, CrovcaError, FileFormatError, InvalidInputError, StorageError
from crovca.hashing.train import Observer, Silent
from crovca.index.index import HashIndex
from crovca.index.nearest import nearest_pairs
from crovca.index.originals import Originals
from crovca.index.scoring import Int64
from crovca.index.view import View
from crovca.sources.decode import UnreadableItem, decode
from crovca.sources.source import read_file

FILE = "duplicates.sqlite"
_NEAREST = 6  # of each picture
_COSINE = 0.7  # of the embeddings of a candidate, at least
_MINUTE = 60  # seconds within which a burst is taken
_BATCH = 1024
_TABLES = """
CREATE TABLE IF NOT EXISTS picture (content TEXT PRIMARY KEY, gray BLOB);
CREATE TABLE IF NOT EXISTS asked (content TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS candidate (first TEXT, second TEXT, PRIMARY KEY (first, second)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pair (first TEXT, second TEXT, aligned INTEGER, blocks REAL, whole REAL,
    detail REAL, overlap REAL, features INTEGER, PRIMARY KEY (first, second)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS apart (first TEXT, second TEXT, PRIMARY KEY (first, second)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last (number INTEGER PRIMARY KEY, content TEXT);
"""

Kind = Literal["copy", "burst"]


@dataclass(frozen=True)
class Duplicate:
    """A picture of a group, other than the one to keep.

    Attributes:
        id: path below the root.
        similarity: cosine of its embedding and that of the one to keep.
        kind: "copy": the same picture; "burst": the same scene, taken again within a minute.
    """

    id: str
    similarity: float
    kind: Kind


@dataclass(frozen=True)
class Group:
    """Pictures that are duplicates of each other; ``keep`` has the most pixels, then bytes, then the earliest date."""

    keep: str
    items: list[Duplicate]


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        groups: copies first, then bursts; the largest first. A burst is of pictures to keep.
        pictures: how many there are.
        candidates: pairs that were looked at, now or before.
        compared: pairs whose pixels were compared now.
        undecided: pairs that were not confirmed, and might be if OpenCV were installed.
    """

    groups: list[Group]
    pictures: int
    candidates: int
    compared: int
    undecided: int


def near_pairs(
    embeddings: Originals, asked: Int64, advance: Callable[[float], object] = lambda share: None
) -> tuple[Int64, Int64]:
    """Candidates: pairs (i, j), i < j, of rows of embeddings (n, d), of which one is asked for (their numbers (q,))."""
    first, second = nearest_pairs(embeddings, asked, _NEAREST, advance)
    near = np.zeros(len(first), np.bool_)
    for start in range(0, len(first), _BATCH):
        part = slice(start, start + _BATCH)
        near[part] = _cosine(embeddings, first[part], second[part]) >= _COSINE
    return first[near], second[near]


def _cosine(embeddings: Originals, first: Int64, second: Int64) -> npt.NDArray[np.float32]:
    one, other = (unit_rows(embeddings.kept(rows).astype(np.float32)) for rows in (first, second))
    return np.einsum("nd,nd->n", one, other)


@dataclass(frozen=True)
class _Pictures:
    """All pictures of an archive, as its index has them."""

    ids: list[str]
    contents: list[str]
    rank: list[tuple[Any, ...]]  # the first is the one to keep
    taken: list[Any]
    embeddings: Originals


def find(archive: Archive, *, observer: Observer | None = None) -> Found:
    """The duplicates of an archive.

    Raises:
        ConfigError: it was never synced.
        FileFormatError: what is kept of earlier runs is damaged.
    """
    observer = observer or Silent()
    if not archive.index.exists():
        raise ConfigError(f"{archive.path} holds nothing yet; fill it with: crovca archive sync {archive.path}")
    with HashIndex.open(archive.index) as index, _opened(archive) as kept:
        view = index.view()
        rows = view.live()
        if not len(rows):
            return Found([], 0, 0, 0, 0)
        pictures = _pictures(view, rows)
        pairs = _candidates(kept, pictures, observer)
        agreements, compared = _agreements(archive, kept, pictures, pairs, observer)
        apart = set(kept.execute("SELECT first, second FROM apart"))
    copies, retaken = [], []
    for pair in pairs:
        same = pictures.contents[pair[0]] == pictures.contents[pair[1]]
        agreement = agreements.get(pair, Agreement())
        if same or (agreement.copy and not _retaken(pictures, *pair)):
            copies.append((2.0 if same else agreement.blocks, pair))
        elif agreement.scene and _retaken(pictures, *pair, within=_MINUTE):
            retaken.append((agreement.blocks, pair))

    def kept_apart(first: int, second: int) -> bool:
        return bool(apart) and _key(pictures.contents, (first, second)) in apart

    groups = _groups(pictures, copies, agreements, lambda a, b: kept_apart(a, b) or _retaken(pictures, a, b))
    kept_of = {one: group[0] for group in groups for one in group}
    bursts = _groups(pictures, [(s, (kept_of.get(a, a), kept_of.get(b, b))) for s, (a, b) in retaken], {}, kept_apart)
    told = [_told(pictures, group, "copy") for group in groups] + [_told(pictures, group, "burst") for group in bursts]
    with _opened(archive) as kept:
        _keep_last(kept, told)
    undecided = 0 if aligns() else sum(not one.copy for one in agreements.values())
    return Found(told, len(pictures.ids), len(pairs), compared, undecided)


def keep_apart(archive: Archive, ids: Sequence[str]) -> None:
    """Remember that these pictures are no duplicates of each other, whatever they look like.

    Raises:
        InvalidInputError: fewer than two, or one that is not in the archive.
    """
    if len(set(ids)) < 2:
        raise InvalidInputError("say at least two pictures that are no duplicates of each other")
    with HashIndex.open(archive.index) as index, _opened(archive) as kept:
        table = index.get(list(ids)).metadata
        assert table is not None
        contents = sorted(set(table.column("sha256").to_pylist()))
        if len(contents) < 2:
            raise InvalidInputError("these files are the same, byte for byte")
        pairs = [(a, b) for at, a in enumerate(contents) for b in contents[at + 1 :]]
        kept.executemany("INSERT OR IGNORE INTO apart VALUES (?, ?)", pairs)
        groups = _last(kept) or []
        for group in groups:
            if len({group.keep, *(one.id for one in group.items)} & set(ids)) > 1:
                group.items[:] = [one for one in group.items if one.id not in ids]
        _keep_last(kept, [group for group in groups if group.items])


def last_found(archive: Path) -> list[Group] | None:
    """The groups that the last ``find`` found, less what was kept apart since; None where nothing was looked for.

    Args:
        archive: its folder.
    """
    if not (archive / FILE).is_file():
        return None
    with _opened(Archive.open(archive)) as kept:
        return _last(kept)


def _last(kept: sqlite3.Connection) -> list[Group] | None:
    row = kept.execute("SELECT content FROM last").fetchone()
    if row is None:
        return None
    return [Group(keep, [Duplicate(*one) for one in items]) for keep, items in json.loads(row[0])]


def _keep_last(kept: sqlite3.Connection, groups: Sequence[Group]) -> None:
    content = [[group.keep, [[one.id, one.similarity, one.kind] for one in group.items]] for group in groups]
    kept.execute("INSERT OR REPLACE INTO last VALUES (1, ?)", (json.dumps(content),))


@contextmanager
def _opened(archive: Archive) -> Iterator[sqlite3.Connection]:
    """What is kept of earlier runs; an end without an error commits."""
    file = archive.path / FILE
    with closing(sqlite3.connect(file, timeout=60)) as connection:
        try:
            connection.executescript(_TABLES)
            with connection:
                yield connection
        except sqlite3.OperationalError as error:  # locked, or the disk is full
            raise StorageError(f"{file}: {error}") from error
        except (sqlite3.DatabaseError, UnidentifiedImageError) as error:
            raise FileFormatError(f"{file} is damaged: {error}; remove it, and everything is compared anew") from error


def _pictures(view: View, rows: Int64) -> _Pictures:
    table = view.metadata(rows)
    assert table is not None
    ids = [str(one) for one in view.ids(rows).tolist()]
    width, height, size, taken, content = (
        table.column(name).to_pylist() for name in ("width", "height", "size", "taken", "sha256")
    )
    rank = [
        (-(w or 0) * (h or 0), -s, date is None, date or 0, id)
        for w, h, s, date, id in zip(width, height, size, taken, ids, strict=True)
    ]
    return _Pictures(ids, content, rank, taken, view.originals().take(rows))


def _candidates(kept: sqlite3.Connection, pictures: _Pictures, observer: Observer) -> list[tuple[int, int]]:
    """Pairs of pictures, by their numbers: those whose embeddings are near, and files that are equal.

    Only pictures whose content was never asked for its nearest ones are asked now. Of equal files the first stands for
    all.
    """
    first_of: dict[str, int] = {}
    equal = [(first_of[c], one) for one, c in enumerate(pictures.contents) if first_of.setdefault(c, one) != one]
    numbers = np.array(list(first_of.values()))
    before = {content for (content,) in kept.execute("SELECT content FROM asked")}
    asked = np.array([at for at, content in enumerate(first_of) if content not in before], np.int64)

    def advance(share: float) -> None:
        observer.advance(f"candidates among {len(numbers):,} pictures", share)

    first, second = near_pairs(pictures.embeddings.take(numbers), asked, advance)
    found = zip(numbers[first].tolist(), numbers[second].tolist(), strict=True)
    kept.executemany("INSERT OR IGNORE INTO candidate VALUES (?, ?)", (_key(pictures.contents, pair) for pair in found))
    kept.executemany("INSERT INTO asked VALUES (?)", ((pictures.contents[numbers[at]],) for at in asked))
    kept.commit()
    pairs = {
        (min(first_of[a], first_of[b]), max(first_of[a], first_of[b]))
        for a, b in kept.execute("SELECT first, second FROM candidate")
        if a in first_of and b in first_of
    }
    return sorted(pairs.union(equal))


def _agreements(
    archive: Archive,
    kept: sqlite3.Connection,
    pictures: _Pictures,
    pairs: Sequence[tuple[int, int]],
    observer: Observer,
) -> tuple[dict[tuple[int, int], Agreement], int]:
    """What the pixels of each pair agree on, and how many pairs were compared for that."""
    contents, aligned = pictures.contents, int(aligns())
    query = "SELECT first, second, blocks, whole, detail, overlap, features FROM pair WHERE aligned >= ?"
    known = {(a, b): Agreement(*rest) for a, b, *rest in kept.execute(query, (aligned,))}
    keys = {pair: _key(contents, pair) for pair in pairs if contents[pair[0]] != contents[pair[1]]}
    found = {pair: known[key] for pair, key in keys.items() if key in known}
    new = [pair for pair in keys if pair not in found]
    shown = _keep_grays(archive, kept, pictures, sorted({one for pair in new for one in pair}), observer)
    new = [(a, b) for a, b in new if contents[a] in shown and contents[b] in shown]

    def read(one: int) -> Gray:
        with closing(sqlite3.connect(archive.path / FILE, timeout=60)) as own:  # a connection is of one thread
            return gray(*own.execute("SELECT gray FROM picture WHERE content = ?", (contents[one],)).fetchone())

    comparer = Comparer(read)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(new), _BATCH):
            observer.advance(f"comparing {len(new):,} pairs", start / len(new))
            part = new[start : start + _BATCH]
            results = list(pool.map(lambda pair: comparer.compare(*pair), part))
            found |= zip(part, results, strict=True)
            rows = [(*keys[pair], aligned, *one) for pair, one in zip(part, results, strict=True)]
            kept.executemany("INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            kept.commit()
    return found, len(new)


def _keep_grays(
    archive: Archive, kept: sqlite3.Connection, pictures: _Pictures, wanted: Sequence[int], observer: Observer
) -> set[str]:
    """Decode what was never decoded; the contents of which there is a gray picture now."""
    shown = {content for (content,) in kept.execute("SELECT content FROM picture")}
    missing = {pictures.contents[one]: pictures.ids[one] for one in wanted if pictures.contents[one] not in shown}

    def made(item: tuple[str, str]) -> tuple[str, bytes] | None:
        try:
            return item[0], shrink(decode(read_file(archive.root / item[1])).image)
        except (UnreadableItem, CrovcaError, OSError):
            return None  # gone since the last sync, which will say so

    items = list(missing.items())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), _BATCH):
            observer.advance(f"reading {len(items):,} pictures", start / len(items))
            rows = [one for one in pool.map(made, items[start : start + _BATCH]) if one is not None]
            kept.executemany("INSERT OR REPLACE INTO picture VALUES (?, ?)", rows)
            kept.commit()
            shown |= {content for content, _ in rows}
    return shown


def _key(contents: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    first, second = sorted(contents[one] for one in pair)
    return first, second


def _retaken(pictures: _Pictures, first: int, second: int, within: float = np.inf) -> bool:
    """Whether both say when they were taken, at different times, and not further apart."""
    one, other = pictures.taken[first], pictures.taken[second]
    return None not in (one, other) and 0 < abs((one - other).total_seconds()) <= within


def _groups(
    pictures: _Pictures,
    pairs: Sequence[tuple[float, tuple[int, int]]],
    compared: Collection[tuple[int, int]],
    barred: Callable[[int, int], bool],
) -> list[list[int]]:
    """Groups that are linked by pairs, the surest first; in each the one to keep comes first.

    Two groups stay apart where they would hold two pictures that are barred, or where most of the pairs between them
    that were compared are none: so one wrong pair does not join two groups of copies.
    """
    linked = {pair for _, pair in pairs}
    group_of: dict[int, list[int]] = {}
    for _, (first, second) in sorted(pairs, reverse=True):
        one, other = group_of.get(first, [first]), group_of.get(second, [second])
        between = [(min(a, b), max(a, b)) for a in one for b in other]
        yes, no = (
            sum(pair in linked for pair in between),
            sum(pair in compared and pair not in linked for pair in between),
        )
        if one != other and yes >= no and not any(barred(*pair) for pair in between):
            joined = one + other
            group_of |= dict.fromkeys(joined, joined)
    distinct = {id(group): sorted(group, key=pictures.rank.__getitem__) for group in group_of.values()}
    return sorted(distinct.values(), key=lambda group: (-len(group), pictures.ids[group[0]]))


def _told(pictures: _Pictures, group: Sequence[int], kind: Kind) -> Group:
    keep, *others = group
    near = _cosine(pictures.embeddings, np.full(len(others), keep), np.array(others))
    items = [
        Duplicate(pictures.ids[one], round(float(cosine), 4), kind) for one, cosine in zip(others, near, strict=True)
    ]
    return Group(pictures.ids[keep], items)
