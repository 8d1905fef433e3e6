"""An HTML page of a comparison: tables, measures against bytes, and the numbers as JSON beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from crovca.compare.results import (
    BEST,
    Comparison,
    Row,
    columns_of,
    conclusion,
    failures,
    marks,
    percent,
    score_cells,
    score_titles,
    shown,
)
from crovca.evaluation import figures, page
from crovca.evaluation.situations import SITUATIONS, Column
from crovca.files import atomic_directory, check_output, write_json
from crovca.metrics import METRICS

_GLOSSARY = (
    ("bold", "the best of its length, among methods that learn with labels or among those that learn without"),
    ("dotted", "not told from the best by the spread of seeds"),
    (
        "mAP@k",
        "mean over queries of the average precision among the first k, divided by the relevant items found there",
    ),
    *((metric.title, metric.formula) for metric in METRICS.values() if not metric.needs_item_logits),
    ("own", "the method's score between a float query and what it stores"),
    ("min(k, R) form", "average precision divided by min(k, relevant items) instead"),
    ("tie-aware Hamming", "expected over all orders of items at one distance"),
    ("m@k", "the float ranking's top m found in the top k"),
)


def write_comparison(folder: Path, state: Comparison, *, force: bool = False) -> None:
    """Write ``index.html`` and ``metrics.json`` into a new folder, atomically."""
    figures.require_report_packages()
    check_output(folder, force=force, marker="metrics.json")
    text = page.as_page("crovca compare", "Which method, on these embeddings?", list(_blocks(state)))
    with atomic_directory(folder) as temporary:
        (temporary / "index.html").write_text(text, encoding="utf-8")
        write_json(temporary / "metrics.json", state.to_dict())


def _blocks(state: Comparison) -> Iterator[page.Block]:
    rows = state.rows()
    yield page.Conclusion(conclusion(state))
    yield page.Text(f"{state.described()}; mean ± sample standard deviation over seeds, in %.")
    for column in columns_of(state):
        if column.name in ("seen", "new", "mixed", "order"):
            yield from _figure(state, rows, column.name, f"{column.title}: {column.meaning}")
    for size, of_size in by_size(state):
        at_size = [row for row in of_size if row.cells]
        if at_size:
            yield page.Heading(size)
            yield five_table(state, size, at_size, columns_of(state))
            if (found := frontier(state, at_size)) is not None:
                yield page.Figure(found, "What is found of learned kinds, against what is kept for others")
            yield _table(at_size)
    failed = failures(rows)
    if failed:
        yield page.Heading("Failed")
        yield page.Bullets(failed)
    yield page.Glossary([*((column.title, column.meaning) for column in columns_of(state)), *_GLOSSARY])


def by_size(state: Comparison) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each length, and of methods with sizes of their own, with what they have in common."""
    for bits in [*state.lengths, None]:
        rows = [row for row in state.rows() if (row.bits if row.method.size == "asked" else None) == bits]
        if rows:
            yield "Sizes of their own" if bits is None else f"{bits} bits", rows


def frontier(state: Comparison, rows: Sequence[Row]) -> bytes | None:
    """A figure of *seen* against *mixed* and *order*; None where they were not all measured of two methods or more."""
    names = ("seen", "mixed", "order")
    points: dict[str, list[float]] = {}
    for row in rows:
        values = [row.five(name, labeled=state.labeled) for name in names]
        known = [value[0] for value in values if value is not None]
        if len(known) == len(names):
            points[row.method.title] = known
    strong = [row.method.title for row in rows if row.method.ours is not None]
    return figures.frontier_figure(points, names, strong) if state.labeled and len(points) > 1 else None


def five_table(
    state: Comparison, size: str, rows: list[Row], columns: Sequence[Column], *, times: bool = False
) -> page.Table:
    """Methods of one size by the five measures, the best marked; with ``times`` also those of fitting and encoding."""
    marked = {column.name: marks(rows, column, labeled=state.labeled) for column in columns}
    lines: list[list[str | page.Cell]] = []
    for row in rows:
        if not row.cells:
            lines.append([row.method.title, "", "failed"])
            continue
        line: list[str | page.Cell] = [row.method.title, f"{row.measured('bytes') or 0:,.0f}"]
        for column in columns:
            text = shown(row.five(column.name, labeled=state.labeled), len(row.cells))
            mark = marked[column.name].get((row.method.name, row.bits))
            line.append(text if mark is None else page.Cell(text, "best" if mark == BEST else "level"))
        lines.append([*line, *_times(row)] if times else line)
    judged = f"mAP@{state.k:,}" if state.labeled else "order"
    situations = ", ".join(column.title for column in columns if column.name in SITUATIONS)
    head = ["method", "bytes", *(column.title for column in columns), *(("fit, s", "items/s") if times else ())]
    return page.Table(f"{size}: the five measures in %; {situations}: {judged}", head, lines)


def _times(row: Row) -> tuple[str, str]:
    return f"{row.measured('fit_seconds') or 0:.1f}", f"{row.measured('encode_rate') or 0:,.0f}"


def _table(rows: list[Row]) -> page.Table:
    recalls = ("1@10", "10@10", "10@100", "100@1000")
    lines = [
        [
            row.method.title,
            str(len(row.cells)),
            *score_cells(row, "map"),
            percent(row, row.main_score, "map_min_k_r"),
            percent(row, "hamming", "expected_map"),
            *(percent(row, row.main_score, name) for name in recalls),
            *_times(row),
        ]
        for row in rows
    ]
    head = ("method", "seeds", *score_titles(), "min(k, R) form", "tie-aware Hamming", *recalls,
            "fit, s", "items/s")  # fmt: skip
    return page.Table("Learned from what is searched: mAP by every score, float neighbors, times", head, lines)


def _figure(state: Comparison, rows: list[Row], name: str, caption: str) -> Iterator[page.Block]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = row.five(name, labeled=state.labeled)
        if value is not None:
            lines.setdefault(row.method.title, []).append((row.measured("bytes") or 0, value[0]))
    if lines:
        yield page.Figure(figures.methods_figure(lines, name), f"{caption}; against bytes an item")
