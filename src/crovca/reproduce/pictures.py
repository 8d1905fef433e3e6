"""The paper's pictures: maps of items (Figure 3) and nearest neighbors (Figures 4, 5 and 9).

Each is written to WORK/FIGURE/ as ``FIGURE.html``, one file with its pictures inside, and ``FIGURE.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crovca.baselines.linear import HashingBaseline
from crovca.data.embeddings import as_embeddings
from crovca.data.encoded import Encoded
from crovca.data.labels import share_a_label
from crovca.datasets import cifar10
from crovca.datasets.structure import Dataset
from crovca.errors import ConfigError, InvalidInputError
from crovca.evaluation import figures, page
from crovca.evaluation.evaluate import Items
from crovca.files import atomic_file, write_json
from crovca.ids import tie_order
from crovca.index.scoring import BitScorer, CosineScorer, Scorer, top_k
from crovca.reproduce.paper import Cell, Training, experiment_of
from crovca.reproduce.workspace import Workspace
from crovca.sources.decode import UnreadableItem, decode

if TYPE_CHECKING:
    from PIL.Image import Image

ITEMS = 2000
"""Queries on the map of Figure 3, drawn with seed 0 (the paper does not say how many, or which)."""
NEIGHBORS = 5
_LARGE = 520  # pixels of Figure 9's longer sides
_FLOAT, _BASELINE, _OURS = "float", "Hashing-Baseline", "HashCoder"

_CLASSES = {"n02391049": "zebra", "n01537544": "indigo bird", "n02488291": "gray langur"}
"""Synsets of the paper's queries, and what it calls them."""


@dataclass(frozen=True)
class _Neighbors:
    """A figure of neighbors; ``zoom``: the query and the last neighbor are shown large."""

    synsets: tuple[str, ...]
    methods: tuple[str, ...]
    zoom: bool = False


_FIGURES = {
    "figure4": _Neighbors(("n02391049",), (_FLOAT, _OURS)),
    "figure5": _Neighbors(("n01537544", "n02488291"), (_FLOAT, _BASELINE, _OURS)),
    "figure9": _Neighbors(("n01537544",), (_OURS,), zoom=True),
}


class QueryError(ConfigError):
    """The query that was asked for is none of the dataset's."""


def check(name: str, cells: Sequence[Cell], query: str | None = None) -> tuple[Training, str]:
    """Refuse what ``draw`` could not draw, whatever the data; gives the model that is drawn, and the dataset."""
    figures.require_report_packages()
    chosen = [cell.measurement for cell in cells if cell.measurement and cell.measurement.training]
    if not chosen or (name != "figure3" and name not in _FIGURES):
        raise ConfigError(f"{name} has no picture to draw here; choose cells with a model")
    if name == "figure3" and query is not None:
        raise ConfigError("figure3 is a map of many items; it has no query")
    training = chosen[0].training
    assert training is not None
    return training, chosen[0].dataset


def draw(name: str, workspace: Workspace, cells: Sequence[Cell], *, seed: int = 0, query: str | None = None) -> Path:
    """Draw a figure of pictures; the cells say of which encoder, model and dataset.

    The seed is of the model and of Hashing-Baseline's rotation. ``query`` is another one instead of the paper's: the
    path of one of the dataset's queries, below its folder or anywhere.
    """
    title = experiment_of(name).title + (", for another query" if query else "")
    training, dataset = check(name, cells, query)
    if name == "figure3":
        blocks, content = _map(workspace, training, seed, dataset)
    else:
        blocks, content = _neighbors(_FIGURES[name], _Shelf(workspace, training, seed, dataset), query)
    folder = workspace.work / name
    folder.mkdir(parents=True, exist_ok=True)
    described = {"figure": name, "model": workspace.name_of(training), "seed": seed, "dataset": dataset}
    write_json(folder / f"{name}.json", {**described, **content})
    with atomic_file(folder / f"{name}.html") as temporary:
        said = page.Text(f"{workspace.name_of(training)}, seed {seed}, on {dataset}.")
        temporary.write_text(page.as_page(name, title, [said, *blocks]), encoding="utf-8")
    return folder / f"{name}.html"


# --- Figure 3 -------------------------------------------------------------------------------------------------------


def _map(workspace: Workspace, training: Training, seed: int, dataset: str) -> tuple[list[page.Block], dict[str, Any]]:
    floats = workspace.embeddings(training.encoder, dataset, "query")
    ours = workspace.encoded(training, seed, dataset, "query")
    assert floats.ids is not None
    assert ours.ids is not None
    assert ours.logits is not None
    both, left, right = np.intersect1d(floats.ids, ours.ids, return_indices=True)
    random = np.random.default_rng(0)
    drawn = np.sort(random.choice(len(both), min(ITEMS, len(both)), replace=False))
    rows = right[drawn]
    embeddings = np.asarray(floats.values[left[drawn]], np.float32)
    codes = ours.codes[rows].unpack().astype(np.float32)
    panels = {
        f"{training.encoder}, {embeddings.shape[1]} floats": figures.project(embeddings, "cosine"),
        f"HashCoder, {training.bits} logits": figures.project(ours.logits[rows], "euclidean"),
        f"HashCoder, {training.bits} bits": figures.project(codes, "hamming"),
    }
    labels = ours.labels
    if labels is not None:
        labels = labels[rows]
        if dataset == "cifar10":
            labels = np.array(cifar10.CLASSES)[labels]
    picture = figures.map_of_items_figure(panels, labels)
    caption = f"{len(rows):,} of the {len(both):,} queries in two dimensions (t-SNE), drawn at random"
    content = {
        "items": len(rows),
        "ids": both[drawn].tolist(),
        "labels": None if labels is None else labels.tolist(),
        "places": {name: np.round(points, 3).tolist() for name, points in panels.items()},
    }
    folder = workspace.work / "figure3"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "figure3.png") as temporary:
        temporary.write_bytes(picture)
    return [page.Figure(picture, caption, wide=True)], content


# --- Figures 4, 5 and 9 ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hit:
    """An item that was found."""

    id: str
    right: bool
    distance: float


def _neighbors(figure: _Neighbors, shelf: _Shelf, query: str | None) -> tuple[list[page.Block], dict[str, Any]]:
    asked = [shelf.query_of(query)] if query else [shelf.first_of(synset) for synset in figure.synsets]
    found = {method: shelf.ranked(method, asked) for method in figure.methods}
    parts: list[page.Block] = [page.Text("Frames: green is of the query's class, red is not.")]
    content = []
    for number, name in enumerate(asked):
        lines = {shelf.title(method): hits[number] for method, hits in found.items()}
        shown = [
            page.Line(title, [page.picture(shelf.image("database", hit.id), hit.id, hit.right) for hit in hits])
            for title, hits in lines.items()
        ]
        ours = page.picture(shelf.image("query", name), name)
        parts.append(page.Grid(ours, shelf.class_of(name), shown))
        if figure.zoom:
            hits = lines[shelf.title(figure.methods[-1])]
            for title, split, shown_id, right in (
                ("the query", "query", name, None),
                (f"neighbor {len(hits)}", "database", hits[-1].id, hits[-1].right),
            ):
                large = page.picture(shelf.image(split, shown_id), shown_id, right, side=_LARGE, crop=False)
                parts.append(page.Large(title, large))
        content.append(
            {
                "query": name,
                "class": shelf.class_of(name),
                "neighbors": {title: [asdict(hit) for hit in hits] for title, hits in lines.items()},
            }
        )
    return parts, {"queries": content}


class _Shelf:
    """The queries and the database of a dataset, and how each method ranks them."""

    def __init__(self, workspace: Workspace, training: Training, seed: int, name: str) -> None:
        self._lab, self._training, self._seed, self._name = workspace, training, seed, name
        self._dataset = workspace.dataset(name)
        queries = self._dataset.splits["query"]
        assert queries.paths is not None
        assert queries.labels is not None
        self._paths: list[str] = queries.paths.tolist()
        self._labels = queries.labels
        self._synsets = _synsets(self._dataset)

    def first_of(self, synset: str) -> str:
        """The id of the first query of a class."""
        classes = [label for label, name in self._synsets.items() if name == synset]
        rows = np.flatnonzero(np.isin(self._labels, classes))
        if not len(rows):
            raise ConfigError(
                f"this copy of {self._name} has no query of the class {synset} ({_CLASSES[synset]}), which the paper "
                f"shows; choose another query with --query PATH, such as {self._paths[0]}"
            )
        return self._paths[int(rows[0])]

    def query_of(self, path: str) -> str:
        """The id of the query with that path, below the dataset's folder or anywhere."""
        folder = self._dataset.folder.resolve()
        for place in (Path(path), folder / path):
            whole = place.resolve()
            name = whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else path
            if name in self._paths:
                return name
        raise QueryError(
            f"{path} is none of the queries of {self._name}; expected the path of one of them, such as {self._paths[0]}"
        )

    def class_of(self, query: str) -> str:
        """The class of a query, as far as it has a name."""
        label = self._labels[self._paths.index(query)]
        if np.ndim(label):
            return ", ".join(str(number) for number in np.flatnonzero(label))
        synset = self._synsets.get(int(label), str(label))
        return f"{_CLASSES[synset]} ({synset})" if synset in _CLASSES else synset

    def title(self, method: str) -> str:
        """What a line is called."""
        if method == _FLOAT:
            return f"{self._training.encoder}, floats (cosine)"
        return f"{method}, {self._training.bits} bits"

    def ranked(self, method: str, queries: Sequence[str]) -> list[list[_Hit]]:
        """The first neighbors of each query by a method; codes by asymmetric Hamming distance, as in the paper."""
        asked, searched, scorer = self._scorer(method, queries)
        assert searched.ids is not None
        ties = tie_order(searched.ids, len(searched))
        ranking = top_k(scorer, min(NEIGHBORS, len(searched)), ties=ties)
        assert asked.labels is not None
        assert searched.labels is not None
        right = share_a_label(asked.labels, searched.labels, ranking.rows)
        return [
            [
                _Hit(str(searched.ids[row]), bool(flag), round(float(distance), 6))
                for row, flag, distance in zip(*line, strict=True)
            ]
            for line in zip(ranking.rows.tolist(), right, ranking.distances, strict=True)
        ]

    def image(self, split: str, name: str) -> Image | None:
        """An item's picture."""
        source = self._lab.source(self._name, split)
        (row,) = np.flatnonzero(source.ids == name)
        try:
            return decode(source.read(int(row))).image
        except UnreadableItem:
            return None

    def _scorer(self, method: str, queries: Sequence[str]) -> tuple[Items, Items, Scorer]:
        """The queries, the database, and their distances."""
        training, workspace, name = self._training, self._lab, self._name
        if method == _OURS:
            ours, theirs = (workspace.encoded(training, self._seed, name, part) for part in ("query", "database"))
            rows = _rows(ours.ids, queries)
            assert ours.logits is not None
            asked = Encoded(ours.codes[rows], _some(ours.ids, rows), _some(ours.labels, rows))
            return asked, theirs, BitScorer.of("asymmetric_hamming", ours.logits[rows], theirs.codes)
        floats, database = (workspace.embeddings(training.encoder, name, part) for part in ("query", "database"))
        rows = _rows(floats.ids, queries)
        values = np.asarray(floats.values[rows], np.float32)
        known = as_embeddings(values, _some(floats.labels, rows), _some(floats.ids, rows))
        if method == _FLOAT:
            return known, database, CosineScorer(values, database.values)
        baseline = HashingBaseline(training.bits, seed=self._seed)
        baseline.fit(workspace.embeddings(training.encoder, name, "train"))
        scorer = BitScorer.of("asymmetric_hamming", baseline.logits(values), baseline.encode(database))
        return known, database, scorer


def _synsets(dataset: Dataset) -> dict[int, str]:
    """The synset of each class, from the names of ImageNet's training images (SYNSET_NUMBER.JPEG)."""
    found: dict[int, str] = {}
    for split in ("train", "database"):
        part = dataset.splits.get(split)
        if part is None or part.paths is None or part.labels is None or part.labels.ndim != 1:
            continue
        labels, first = np.unique(part.labels, return_index=True)
        for label, row in zip(labels.tolist(), first.tolist(), strict=True):
            found.setdefault(label, str(part.paths[row]).rpartition("/")[2].partition("_")[0])
    return found


def _rows(ids: npt.NDArray[Any] | None, wanted: Sequence[str]) -> npt.NDArray[np.int64]:
    row_of = {} if ids is None else {name: row for row, name in enumerate(ids.tolist())}
    missing = [name for name in wanted if name not in row_of]
    if missing:
        raise InvalidInputError(f"the query {missing[0]} could not be read; choose another with --query PATH")
    return np.array([row_of[name] for name in wanted], np.int64)


def _some(values: npt.NDArray[Any] | None, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
    return None if values is None else values[rows]
