"""An HTML page of an evaluation: one file with its figures inside, and the numbers as JSON beside it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.data.embeddings import Rows
from crovca.data.encoded import Encoded
from crovca.data.labels import share_a_label
from crovca.errors import InvalidInputError, StorageError
from crovca.evaluation import figures
from crovca.evaluation.diagnostics import bit_balance
from crovca.evaluation.evaluate import Evaluation, LengthResult, Ranked
from crovca.evaluation.page import THUMBNAIL, as_page, figure, grid, line, picture
from crovca.files import atomic_directory, check_output, write_json
from crovca.metrics import METRICS, REPORTED

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageOf", "Subject", "image_folder", "write_report"]

GRID_QUERIES, GRID_NEIGHBORS = 6, 10

ImageOf = Callable[[Any], "Image | None"]
"""Gives the picture of an item by its id, or None where it has none."""


@dataclass(frozen=True)
class Subject:
    """One evaluation to report.

    Attributes:
        title: heading of its section.
        evaluation: what was measured.
        query, database: the items, with labels and ids as far as they are known.
        database_embeddings: (n, d) for the 2-D map; None: leave it out.
        image_of: pictures of items, for the neighbor grids; None: leave them out.
        query_text: what to show of a query that is no picture.
    """

    title: str
    evaluation: Evaluation
    query: Encoded
    database: Encoded
    database_embeddings: Rows | None = None
    image_of: ImageOf | None = None
    query_text: Callable[[int], str] | None = None


def image_folder(folder: Path) -> ImageOf:
    """Pictures below ``folder``, whose paths are the items' ids.

    Raises:
        StorageError: there is no such folder.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise StorageError(
            f"{folder} is not a folder; expected one below which the items' ids are paths of images"
        )

    def image_of(item: Any) -> Image | None:
        from PIL import Image, UnidentifiedImageError

        if "\0" in str(item):
            return None
        path = (root / str(item)).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return None
        try:
            with Image.open(path) as image:
                image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            return None

    return image_of


def write_report(folder: Path, subjects: Sequence[Subject], *, force: bool = False) -> None:
    """Write ``index.html`` and ``metrics.json`` into a new folder, atomically.

    Raises:
        MissingDependencyError: the extra ``report`` is not installed.
        InvalidInputError: pictures were asked for, but the items have no ids.
    """
    figures.require_report_packages()
    check_output(folder, force=force, marker="metrics.json")
    for subject in subjects:
        if subject.image_of is not None and subject.database.ids is None:
            raise InvalidInputError("neighbor grids need ids (the images' paths) in the database file")
    body = "".join(_section(subject) for subject in subjects)
    page = as_page(subjects[0].title, "How well do the codes retrieve?", body)
    with atomic_directory(folder) as temporary:
        (temporary / "index.html").write_text(page, encoding="utf-8")
        content = {subject.title: subject.evaluation.to_dict() for subject in subjects}
        write_json(temporary / "metrics.json", content)


def _section(subject: Subject) -> str:
    result = subject.evaluation
    parts = [f"<h2>{html.escape(subject.title)}</h2>", _summary(result), _table(subject)]
    ranked = {length.bits: length.scores.get(REPORTED) for length in result.lengths}
    measured = {bits: score for bits, score in ranked.items() if score is not None and score.map is not None}
    if measured and result.chance_map is not None:
        curves = {f"{bits} bits": _curve(score) for bits, score in measured.items()}
        curves |= {f"float, {name.replace('_', ' ')}": _curve(score) for name, score in result.floats.items()}
        parts.append(
            figure(
                figures.map_curves_figure(curves, result.chance_map),
                f"mAP@k for every k up to {result.k:,}; codes by the {METRICS[REPORTED].title} score",
            )
        )
        width = _float_bytes(subject)
        floats = {
            f"float, {name.replace('_', ' ')}": (width, score.map)
            for name, score in result.floats.items()
            if score.map is not None
        }
        parts.append(
            figure(
                figures.map_against_bytes_figure(
                    {bits: score.map for bits, score in measured.items() if score.map is not None},
                    floats,
                    result.chance_map,
                ),
                f"mAP@{result.k:,} against bytes an item",
            )
        )
    longest = max(length.bits for length in result.lengths)
    parts.append(
        figure(
            figures.bit_balance_figure(bit_balance(subject.database.codes.prefix(longest))),
            f"Bit balance of the {longest}-bit codes: a bit says most when half of the items have it",
        )
    )
    parts.append(_item_map(subject))
    parts.append(_grids(subject))
    return "<section>" + "".join(parts) + "</section>"


def _summary(result: Evaluation) -> str:
    text = f"{result.queries:,} queries on {result.database:,} items."
    if result.chance_map is not None:
        text += f" A random order scores {_percent(result.chance_map)} %."
    if result.left_out:
        text += f" {result.left_out:,} queries stand in the database; their own item was left out."
    return f"<p>{text} Measured in {result.seconds:.1f} s.</p>"


def _table(subject: Subject) -> str:
    result = subject.evaluation
    titles = "".join(f"<th>{html.escape(metric.title)}</th>" for metric in METRICS.values())
    head = (
        f"<tr><th></th><th>bytes</th>{titles}<th>float top 10<br>in top 100</th><th>distinct codes</th></tr>"
    )
    rows = []
    for name, score in result.floats.items():
        rows.append(
            f"<tr><td>float, {name.replace('_', ' ')}</td><td>{_float_bytes(subject):,}</td>"
            f"<td colspan={len(METRICS)} class=wide>{_percent(score.map)}</td><td></td><td></td></tr>"
        )
    for length in result.lengths:
        maps = "".join(f"<td>{_percent(length.map_of(metric))}</td>" for metric in METRICS)
        recall = (length.float_neighbour_recall or {}).get("10@100")
        rows.append(
            f"<tr><td>{length.bits} bits</td><td>{-(-length.bits // 8)}</td>{maps}"
            f"<td>{_percent(recall)}</td><td>{length.codes['distinct']:,}</td></tr>"
        )
    caption = f"mAP@{result.k:,} in %, by score; and what the codes keep of the float ranking, in %"
    return f"<table><caption>{caption}</caption>{head}{''.join(rows)}</table>"


def _item_map(subject: Subject) -> str:
    values, database = subject.database_embeddings, subject.database
    if values is None or len(database) < 10:
        return ""
    random = np.random.default_rng(0)
    count = min(figures.MAP_ITEMS, len(database))
    rows = np.sort(random.choice(len(database), count, replace=False))
    embeddings = np.asarray(values[rows], np.float32)
    if embeddings.ndim == 3:
        embeddings = embeddings.mean(axis=1)
    bits = min(length.bits for length in subject.evaluation.lengths)
    labels = None if database.labels is None else database.labels[rows]
    codes = database.codes.prefix(bits)[rows].unpack().astype(np.float32)
    panels = {
        f"{embeddings.shape[1]} floats": figures.project(embeddings, "cosine"),
        f"{bits} bits": figures.project(codes, "hamming"),
    }
    drawn = figures.map_of_items_figure(panels, labels)
    return figure(drawn, f"{count:,} items in two dimensions (t-SNE): embeddings and codes", wide=True)


def _grids(subject: Subject) -> str:
    image_of, ids = subject.image_of, subject.database.ids
    if image_of is None or ids is None:
        return ""
    count = len(subject.query)
    random = np.random.default_rng(0)
    queries = np.sort(random.choice(count, min(GRID_QUERIES, count), replace=False))
    shortest = min(subject.evaluation.lengths, key=lambda length: length.bits)
    rankings = [(f"float ({name.replace('_', ' ')})", s) for name, s in subject.evaluation.floats.items()][
        -1:
    ]
    rankings += [(f"{length.bits} bits", s) for length in _ends(subject.evaluation.lengths, shortest)
                 if (s := length.scores.get(REPORTED)) is not None]  # fmt: skip
    parts = ["<h3>Nearest neighbors</h3><p>Frames: green shares a label with the query, red does not.</p>"]
    for query in queries.tolist():
        lines = [_grid_line(subject, image_of, query, name, ranked) for name, ranked in rankings]
        parts.append(grid(_query(subject, image_of, query), lines))
    return "".join(parts)


def _ends(lengths: list[LengthResult], shortest: LengthResult) -> list[LengthResult]:
    longest = max(lengths, key=lambda length: length.bits)
    return [shortest] if longest is shortest else [shortest, longest]


def _grid_line(subject: Subject, image_of: ImageOf, query: int, name: str, ranked: Ranked) -> str:
    database, cells = subject.database, []
    rows = ranked.rows[query, :GRID_NEIGHBORS]
    relevant = None
    if subject.query.labels is not None and database.labels is not None:
        relevant = share_a_label(subject.query.labels[query : query + 1], database.labels, rows[None, :])[0]
    assert database.ids is not None
    for place, row in enumerate(rows.tolist()):
        right = None if relevant is None else bool(relevant[place])
        cells.append(picture(image_of(database.ids[row]), str(database.ids[row]), right))
    return line(name, cells)


def _query(subject: Subject, image_of: ImageOf, query: int) -> str:
    label = "" if subject.query.labels is None else _label(subject.query.labels[query])
    if subject.query_text is not None:
        return f"<p class=text>“{html.escape(subject.query_text(query))}”</p>"
    name = "" if subject.query.ids is None else str(subject.query.ids[query])
    shown = picture(image_of(subject.query.ids[query]), name) if subject.query.ids is not None else ""
    return f"{shown}<p>{html.escape(label)}</p>"


def _label(label: Any) -> str:
    return ", ".join(str(number) for number in np.flatnonzero(label)) if np.ndim(label) else str(label)


def _curve(ranked: Ranked) -> Any:
    assert ranked.curve is not None
    return ranked.curve


def _float_bytes(subject: Subject) -> int:
    return 0 if subject.database_embeddings is None else 4 * int(subject.database_embeddings.shape[-1])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
