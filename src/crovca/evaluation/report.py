"""An HTML page of an evaluation: one file with its figures inside, and the numbers as JSON beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.data.embeddings import Rows
from crovca.data.encoded import Encoded
from crovca.data.labels import share_a_label
from crovca.errors import InvalidInputError, StorageError
from crovca.evaluation import figures, page
from crovca.evaluation.diagnostics import bit_balance
from crovca.evaluation.evaluate import Evaluation, Items, Ranked, one_view
from crovca.evaluation.situations import COLUMNS, SITUATIONS, FiveMeasures, Measures, column_value
from crovca.files import atomic_directory, check_output, write_json
from crovca.metrics import METRICS, REPORTED

if TYPE_CHECKING:
    from PIL.Image import Image

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
        five: the five measures, beside ITQ and the floats; None: leave them out.
    """

    title: str
    evaluation: Evaluation
    query: Encoded
    database: Encoded
    database_embeddings: Rows | None = None
    image_of: ImageOf | None = None
    query_text: Callable[[int], str] | None = None
    five: FiveMeasures | None = None


def image_folder(folder: Path) -> ImageOf:
    """Pictures below ``folder``, whose paths are the items' ids."""
    root = folder.resolve()
    if not root.is_dir():
        raise StorageError(f"{folder} is not a folder; expected one below which the items' ids are paths of images")

    def image_of(item: Any) -> Image | None:
        from PIL import Image, UnidentifiedImageError

        if "\0" in str(item):
            return None
        path = (root / str(item)).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return None
        try:
            with Image.open(path) as image:
                image.draft("RGB", (2 * page.THUMBNAIL, 2 * page.THUMBNAIL))
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            return None

    return image_of


def write_report(folder: Path, subjects: Sequence[Subject], *, force: bool = False) -> None:
    """Write ``index.html`` and ``metrics.json`` into a new folder, atomically."""
    figures.require_report_packages()
    check_output(folder, force=force, marker="metrics.json")
    for subject in subjects:
        if subject.image_of is not None and subject.database.ids is None:
            raise InvalidInputError("neighbor grids need ids (the images' paths) in the database file")
    blocks = [block for subject in subjects for block in _section(subject)]
    text = page.as_page(subjects[0].title, "How well do the codes retrieve?", [*blocks, page.Glossary(_GLOSSARY)])
    with atomic_directory(folder) as temporary:
        (temporary / "index.html").write_text(text, encoding="utf-8")
        content = {
            subject.title: subject.evaluation.to_dict()
            | ({} if subject.five is None else {"five_measures": subject.five.to_dict()})
            for subject in subjects
        }
        write_json(temporary / "metrics.json", content)


_GLOSSARY = (
    *((column.title, column.meaning) for column in COLUMNS),
    (
        "mAP@k",
        "mean over queries of the average precision among the first k, divided by the relevant items found there",
    ),
    ("relevant", "has a label in common with the query"),
    *((metric.title, metric.formula) for metric in METRICS.values()),
    ("float, centered", "cosine of the embeddings after subtracting the mean of the searched items"),
    ("ITQ", "iterative quantization, learned from the same items: what a learned code has to beat"),
)


def _section(subject: Subject) -> Iterator[page.Block]:
    result = subject.evaluation
    yield page.Heading(subject.title)
    yield page.Conclusion(_conclusion(subject))
    yield page.Text(summary(result))
    if subject.five is not None:
        yield five_table(subject.five, result.k)
    yield scores_table(result, _float_bytes(subject))
    ranked = {length.bits: length.scores.get(REPORTED) for length in result.lengths}
    measured = {bits: score for bits, score in ranked.items() if score is not None and score.map is not None}
    if measured and result.chance_map is not None:
        curves = {f"{bits} bits": _curve(score) for bits, score in measured.items()}
        curves |= {_float_title(name): _curve(score) for name, score in result.floats.items()}
        yield page.Figure(
            figures.map_curves_figure(curves, result.chance_map),
            f"mAP@k for every k up to {result.k:,}; codes by the {METRICS[REPORTED].title} score",
        )
        width = _float_bytes(subject)
        floats = {
            _float_title(name): (width, score.map) for name, score in result.floats.items() if score.map is not None
        }
        yield page.Figure(
            figures.map_against_bytes_figure(
                {bits: score.map for bits, score in measured.items() if score.map is not None},
                floats,
                result.chance_map,
            ),
            f"mAP@{result.k:,} against bytes an item",
        )
    longest = max(length.bits for length in result.lengths)
    yield page.Figure(
        figures.bit_balance_figure(bit_balance(subject.database.codes.prefix(longest))),
        f"Bit balance of the {longest}-bit codes: a bit says most when half of the items have it",
    )
    names = class_names(subject.database)
    yield from _item_map(subject, names)
    yield from _grids(subject, names)


def _conclusion(subject: Subject) -> str:
    """The longest codes beside the floats and ITQ, in one sentence."""
    length = max(subject.evaluation.lengths, key=lambda found: found.bits)
    floats, five = subject.evaluation.floats.get("cosine_centred"), subject.five
    code_map, recall = (length.map_of(REPORTED), (length.float_neighbour_recall or {}).get("10@100"))
    known = {"model": (code_map, recall), "floats": (None if floats is None else floats.map, None)}
    if five is not None and length.bits in five.methods.get("ITQ", {}):
        itq = five.methods["ITQ"][length.bits]["seen"]
        known["ITQ"] = (itq.map, itq.order)
    parts = []
    for number, what in enumerate(("mAP", "the floats' order kept")):
        found = [f"{name} {percent(pair[number])}" for name, pair in known.items() if pair[number] is not None]
        if found:
            parts.append(f"{what} {', '.join(found)}")
    size = -(-length.bits // 8)
    return f"At {length.bits} bits ({size} bytes an item), in %: {'; '.join(parts) or 'nothing could be measured'}."


def summary(result: Evaluation) -> str:
    """What was searched, what guessing scores, and how long it took."""
    text = f"{result.queries:,} queries on {result.database:,} items."
    if result.chance_map is not None:
        text += f" A random order scores {percent(result.chance_map)} %."
    if result.left_out:
        text += f" {result.left_out:,} queries stand in the database; their own item was left out."
    return f"{text} Measured in {result.seconds:.1f} s."


def five_table(five: FiveMeasures, k: int) -> page.Table:
    """The five measures of a model, of ITQ and of the floats."""
    asked = [name for name in SITUATIONS if name in five.counts]
    columns = five.columns()

    def row(name: str, bits: int | None, measured: Mapping[str, Measures]) -> list[str]:
        values = (column_value(measured, column.name, labeled=five.labeled) for column in columns)
        return [name if bits is None else f"{name}, {bits} bits", *map(percent, values)]

    judged = f"mAP@{k:,}" if five.labeled else "order"
    return page.Table(
        f"The five measures in %; {', '.join(asked)}: {judged}",
        ["", *(column.title for column in columns)],
        [row(*line) for line in five.lines()],
    )


def scores_table(result: Evaluation, float_bytes: int) -> page.Table:
    """mAP by every score, and what the codes keep of the floats' ranking."""
    nothing = [""] * (len(METRICS) - 1)
    rows = [
        [_float_title(name), f"{float_bytes:,}", percent(score.map), *nothing, "", ""]
        for name, score in result.floats.items()
    ]
    for length in result.lengths:
        maps = [percent(length.map_of(metric)) for metric in METRICS]
        recall = (length.float_neighbour_recall or {}).get("10@100")
        size = str(-(-length.bits // 8))
        rows.append([f"{length.bits} bits", size, *maps, percent(recall), f"{length.codes['distinct']:,}"])
    titles = [metric.title for metric in METRICS.values()]
    return page.Table(
        f"mAP@{result.k:,} in %, by score (floats by their cosine); and what the codes keep of the float ranking, in %",
        ["", "bytes", *titles, "float top 10 in top 100", "distinct codes"],
        rows,
    )


def class_names(items: Items) -> Mapping[Any, str]:
    """Names of numbered classes where ids tell them: the folder that all items of a class, and no others, are in."""
    if items.labels is None or items.ids is None or items.labels.ndim == 2 or items.ids.dtype.kind != "U":
        return {}
    folders: dict[Any, set[str]] = {}
    for label, name in zip(items.labels.tolist(), items.ids.tolist(), strict=True):
        folders.setdefault(label, set()).add(name.rpartition("/")[0].rpartition("/")[2])
    names = {label: next(iter(found)) for label, found in folders.items() if len(found) == 1}
    usable = len(names) == len(folders) == len(set(names.values())) and "" not in names.values()
    return names if usable else {}


def _item_map(subject: Subject, names: Mapping[Any, str]) -> Iterator[page.Block]:
    values, database = subject.database_embeddings, subject.database
    if values is None or len(database) < 10:
        return
    random = np.random.default_rng(0)
    count = min(figures.MAP_ITEMS, len(database))
    rows = np.sort(random.choice(len(database), count, replace=False))
    embeddings = one_view(values[rows])
    bits = min(length.bits for length in subject.evaluation.lengths)
    labels = None if database.labels is None else database.labels[rows]
    if labels is not None and names:
        labels = np.array([names[label] for label in labels.tolist()])
    codes = database.codes.prefix(bits)[rows].unpack().astype(np.float32)
    panels = {
        f"{embeddings.shape[1]} floats": figures.project(embeddings, "cosine"),
        f"{bits} bits": figures.project(codes, "hamming"),
    }
    drawn = figures.map_of_items_figure(panels, labels)
    yield page.Figure(drawn, f"{count:,} items in two dimensions (t-SNE): embeddings and codes", wide=True)


def _grids(subject: Subject, names: Mapping[Any, str]) -> Iterator[page.Block]:
    image_of, ids = subject.image_of, subject.database.ids
    if image_of is None or ids is None:
        return
    count = len(subject.query)
    random = np.random.default_rng(0)
    queries = np.sort(random.choice(count, min(GRID_QUERIES, count), replace=False))
    lengths = sorted(subject.evaluation.lengths, key=lambda length: length.bits)
    rankings = [(_float_title(name), found) for name, found in subject.evaluation.floats.items()][-1:]
    rankings += [(f"{length.bits} bits", s) for length in lengths[:1] + lengths[1:][-1:]
                 if (s := length.scores.get(REPORTED)) is not None]  # fmt: skip
    yield page.Heading("Nearest neighbors")
    yield page.Text("Frames: green shares a label with the query, red does not.")
    for query in queries.tolist():
        lines = [_grid_line(subject, image_of, query, name, ranked) for name, ranked in rankings]
        yield _grid(subject, image_of, query, lines, names)


def _grid_line(subject: Subject, image_of: ImageOf, query: int, name: str, ranked: Ranked) -> page.Line:
    database, cells = subject.database, []
    rows = ranked.rows[query, :GRID_NEIGHBORS]
    relevant = None
    if subject.query.labels is not None and database.labels is not None:
        relevant = share_a_label(subject.query.labels[query : query + 1], database.labels, rows[None, :])[0]
    assert database.ids is not None
    for place, row in enumerate(rows.tolist()):
        right = None if relevant is None else bool(relevant[place])
        cells.append(page.picture(image_of(database.ids[row]), str(database.ids[row]), right))
    return page.Line(name, cells)


def _grid(
    subject: Subject, image_of: ImageOf, query: int, lines: Sequence[page.Line], names: Mapping[Any, str]
) -> page.Grid:
    if subject.query_text is not None:
        return page.Grid(None, f"“{subject.query_text(query)}”", lines)
    label = "" if subject.query.labels is None else _label(subject.query.labels[query], names)
    if subject.query.ids is None:
        return page.Grid(None, label, lines)
    name = subject.query.ids[query]
    return page.Grid(page.picture(image_of(name), str(name)), label, lines)


def _label(label: Any, names: Mapping[Any, str]) -> str:
    if np.ndim(label):
        return ", ".join(str(number) for number in np.flatnonzero(label))
    return names.get(label.item() if hasattr(label, "item") else label, str(label))


def _float_title(name: str) -> str:
    """What a page calls a ranking of the floats."""
    return {"cosine": "float, cosine", "cosine_centred": "float, centered"}[name]


def _curve(ranked: Ranked) -> Any:
    assert ranked.curve is not None
    return ranked.curve


def _float_bytes(subject: Subject) -> int:
    return 0 if subject.database_embeddings is None else 4 * int(subject.database_embeddings.shape[-1])


def percent(value: float | None) -> str:
    """A share of 1 in percent; "-" is nothing."""
    return "-" if value is None else f"{100 * value:.1f}"
