"""Duplicates of an archive: candidates by embeddings, confirmed by pixels, with a proposal what to keep.

What is found out is kept in ARCHIVE/duplicates.sqlite, by the content of the files: small pictures, so that
nothing is decoded twice; which pictures were asked for their nearest ones, and what pairs agree on, so that only pairs
with something new are looked at; and what a person has said are no duplicates. Nothing is ever deleted.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from crovca.archive.archive import Archive
from crovca.archive.pixels import Agreement, Comparer, Picture, aligns, opened, shrink
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
_VERSION = 2  # of what is kept of pictures and pairs
_TABLES = """
CREATE TABLE IF NOT EXISTS picture (content TEXT PRIMARY KEY, small BLOB);
CREATE TABLE IF NOT EXISTS asked (content TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS candidate (first TEXT, second TEXT, PRIMARY KEY (first, second)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pair (first TEXT, second TEXT, aligned INTEGER, blocks REAL, whole REAL,
    detail REAL, overlap REAL, features INTEGER, color REAL, gray INTEGER, PRIMARY KEY (first, second)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decision (number INTEGER PRIMARY KEY AUTOINCREMENT, same INTEGER, items TEXT);
CREATE TABLE IF NOT EXISTS last (number INTEGER PRIMARY KEY, content TEXT);
"""

Kind = Literal["copy", "gray", "burst"]


@dataclass(frozen=True)
class Duplicate:
    """A picture of a group, other than the one to keep.

    Attributes:
        id: path below the root.
        similarity: cosine of its embedding and that of the one to keep.
        kind: "copy": the same picture; "gray": the same, one of them without colors or in one tone; "burst": the same
            scene, taken again within a minute.
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
class Decision:
    """What a person has said of pictures.

    Attributes:
        number: by which it is taken back.
        same: whether they are duplicates of each other, of which ``id`` is to be kept; or ``id`` is none of the
            others.
        contents: hashes of the files, that of ``id`` first: a decision is of them.
        ids: their paths below the root, as they were.
    """

    number: int
    same: bool
    contents: list[str]
    ids: list[str]

    @property
    def id(self) -> str:
        """The one to keep, or the one that is none of the others."""
        return self.ids[0]

    @property
    def others(self) -> list[str]:
        """The others."""
        return self.ids[1:]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """What is decided to be the same, or not: two contents in order."""
        first, *others = self.contents
        return ((min(first, other), max(first, other)) for other in others if other != first)


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
        said = _decisions(kept)
    verdicts = {key: one.same for one in reversed(said) for key in one.pairs()}  # the last word counts
    chosen = {(one.contents[0], one.id) for one in said if one.same}
    pictures.rank[:] = [
        (which not in chosen, *rank)
        for which, rank in zip(zip(pictures.contents, pictures.ids, strict=True), pictures.rank, strict=True)
    ]
    number = dict(zip(reversed(pictures.contents), reversed(range(len(pictures.contents))), strict=True))
    alike = [key for key, same in verdicts.items() if same and number.keys() >= set(key)]
    copies = [(3.0, (number[first], number[second])) for first, second in alike]
    retaken = []
    for pair in pairs:
        same = pictures.contents[pair[0]] == pictures.contents[pair[1]]
        agreement = agreements.get(pair, Agreement())
        if same or (agreement.copy and not _retaken(pictures, *pair)):
            copies.append((2.0 if same else agreement.blocks, pair))
        elif agreement.scene and _retaken(pictures, *pair, within=_MINUTE):
            retaken.append((agreement.whole, pair))

    def kept_apart(first: int, second: int) -> bool:
        return verdicts.get(_key(pictures.contents, (first, second))) is False

    def others(first: int, second: int) -> bool:
        verdict = verdicts.get(_key(pictures.contents, (first, second)))
        if verdict is None:  # one in gray may be a copy of two that are not the same
            recolored = agreements.get((first, second), Agreement()).recolored
            return recolored or _retaken(pictures, first, second)
        return not verdict

    groups = _groups(pictures, copies, agreements, others)
    kept_of = {one: group[0] for group in groups for one in group}
    bursts = _groups(pictures, [(s, (kept_of.get(a, a), kept_of.get(b, b))) for s, (a, b) in retaken], {}, kept_apart)
    told = [_told(pictures, group, "copy", agreements) for group in groups]
    told += [_told(pictures, group, "burst", {}) for group in bursts]
    with _opened(archive) as kept:
        content = [[group.keep, [list(vars(one).values()) for one in group.items]] for group in told]
        kept.execute("INSERT OR REPLACE INTO last VALUES (1, ?)", (json.dumps(content),))
    undecided = 0 if aligns() else sum(not one.copy for one in agreements.values())
    return Found(told, len(pictures.ids), len(pairs), compared, undecided)


def decide(archive: Archive, id: str, others: Sequence[str], *, same: bool) -> None:
    """Remember what a person says of pictures; nothing is deleted.

    Args:
        archive: that they are in.
        id: the one to keep, or the one that is no duplicate.
        others: its duplicates, or what it is no duplicate of.
        same: which of the two.

    Raises:
        InvalidInputError: there are no others, one is not in the archive, or all are the same file as ``id``.
    """
    others = [one for one in dict.fromkeys(others) if one != id]
    if not others:
        raise InvalidInputError(f"a decision is about at least two pictures, got {id!r} alone; name the others as well")
    with HashIndex.open(archive.index) as index, _opened(archive) as kept:
        table = index.get([id, *others]).metadata
        assert table is not None
        own, *contents = table.column("sha256").to_pylist()
        if not same and own in contents:
            raise InvalidInputError(f"{id} and {others[contents.index(own)]} are the same, byte for byte")
        items = json.dumps([[own, id], *zip(contents, others, strict=True)])
        kept.execute("INSERT INTO decision (same, items) VALUES (?, ?)", (same, items))


def take_back(archive: Archive, number: int) -> None:
    """Forget a decision; one that is not there is passed over."""
    with _opened(archive) as kept:
        kept.execute("DELETE FROM decision WHERE number = ?", (number,))


def last_found(archive: Path) -> tuple[list[Group], list[Decision]] | None:
    """The groups that the last ``find`` found, as what was decided since makes them, and all decisions, the last first.

    None where nothing was looked for. Groups that were decided to be duplicates are among the groups.
    """
    if not (archive / FILE).is_file():
        return None
    with _opened(Archive.open(archive)) as kept:
        row = kept.execute("SELECT content FROM last").fetchone()
        said = _decisions(kept)
    if row is None:
        return None
    found = [Group(keep, [Duplicate(*one) for one in items]) for keep, items in json.loads(row[0])]
    return [group for one in found if (group := _as_decided(one, reversed(said))) is not None], said


def _as_decided(group: Group, said: Iterable[Decision]) -> Group | None:
    """A group as decisions make it; None where none is left."""
    items = {one.id: one for one in group.items}
    ids = [group.keep, *items]
    for one in said:
        others = [id for id in ids if id != one.id]
        if one.id in ids and not set(others).isdisjoint(one.others):
            ids = [one.id, *others] if one.same else others
    first, *others = ids
    if not others:
        return None
    return Group(first, [items[one] if one in items else replace(items[first], id=one) for one in others])


def _decisions(kept: sqlite3.Connection) -> list[Decision]:
    rows = kept.execute("SELECT number, same, items FROM decision ORDER BY number DESC")
    return [
        Decision(number, bool(same), *(list(part) for part in zip(*json.loads(items), strict=True)))
        for number, same, items in rows
    ]


@contextmanager
def _opened(archive: Archive) -> Iterator[sqlite3.Connection]:
    """What is kept of earlier runs; an end without an error commits."""
    file = archive.path / FILE
    with closing(sqlite3.connect(file, timeout=60)) as connection:
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:  # decisions stay
                drop = "DROP TABLE IF EXISTS picture; DROP TABLE IF EXISTS pair;"
                connection.executescript(f"BEGIN; {drop} PRAGMA user_version = {_VERSION}; COMMIT;")
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
    query = "SELECT first, second, blocks, whole, detail, overlap, features, color, gray FROM pair WHERE aligned >= ?"
    known = {(a, b): Agreement(*rest) for a, b, *rest in kept.execute(query, (aligned,))}
    keys = {pair: _key(contents, pair) for pair in pairs if contents[pair[0]] != contents[pair[1]]}
    found = {pair: known[key] for pair, key in keys.items() if key in known}
    new = [pair for pair in keys if pair not in found]
    shown = _keep_small(archive, kept, pictures, sorted({one for pair in new for one in pair}), observer)
    new = [(a, b) for a, b in new if contents[a] in shown and contents[b] in shown]

    def read(one: int) -> Picture:
        with closing(sqlite3.connect(archive.path / FILE, timeout=60)) as own:  # a connection is of one thread
            return opened(*own.execute("SELECT small FROM picture WHERE content = ?", (contents[one],)).fetchone())

    comparer = Comparer(read)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(new), _BATCH):
            observer.advance(f"comparing {len(new):,} pairs", start / len(new))
            part = new[start : start + _BATCH]
            results = list(pool.map(lambda pair: comparer.compare(*pair), part))
            found |= zip(part, results, strict=True)
            rows = [(*keys[pair], aligned, *one) for pair, one in zip(part, results, strict=True)]
            kept.executemany("INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            kept.commit()
    return found, len(new)


def _keep_small(
    archive: Archive, kept: sqlite3.Connection, pictures: _Pictures, wanted: Sequence[int], observer: Observer
) -> set[str]:
    """Decode what was never decoded; the contents of which there is a small picture now."""
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


def _told(
    pictures: _Pictures, group: Sequence[int], kind: Kind, agreements: Mapping[tuple[int, int], Agreement]
) -> Group:
    keep, *others = group
    near = _cosine(pictures.embeddings, np.full(len(others), keep), np.array(others))

    def kind_of(one: int) -> Kind:
        return "gray" if agreements.get((min(keep, one), max(keep, one)), Agreement()).gray else kind

    items = [
        Duplicate(pictures.ids[one], round(float(cosine), 4), kind_of(one))
        for one, cosine in zip(others, near, strict=True)
    ]
    return Group(pictures.ids[keep], items)
