"""An HTML page of a comparison: tables, mAP or recall against bytes, and the numbers as JSON beside it."""

from __future__ import annotations

import html
from pathlib import Path

from crovca.compare.results import Comparison, Row, failures, percent, score_cells, score_titles
from crovca.compare.verdict import RECALL, verdict
from crovca.evaluation import figures
from crovca.evaluation.page import figure
from crovca.files import atomic_directory, check_output, write_json

__all__ = ["write_comparison"]


def write_comparison(folder: Path, state: Comparison, *, force: bool = False) -> None:
    """Write ``index.html`` and ``metrics.json`` into a new folder, atomically.

    Raises:
        MissingDependencyError: the extra ``report`` is not installed.
    """
    figures.require_report_packages()
    check_output(folder, force=force, marker="metrics.json")
    rows = state.rows()
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in verdict(state))
    pictures = [_figure(rows, "map", f"mAP@{state.k:,} against bytes an item")] if state.labeled else []
    pictures.append(_figure(rows, RECALL, "The float ranking's top 10 in the top 100, against bytes an item"))
    failed = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in failures(rows))
    body = (
        f"<p>{html.escape(state.described())}; mean ± sample standard deviation over seeds, in %.</p>"
        f"<ul>{sentences}</ul>{''.join(pictures)}{_table(rows)}"
        + (f"<h2>Failed</h2><ul>{failed}</ul>" if failed else "")
    )
    with atomic_directory(folder) as temporary:
        (temporary / "index.html").write_text(_PAGE.format(body=body), encoding="utf-8")
        write_json(temporary / "metrics.json", state.to_dict())


def _table(rows: list[Row]) -> str:
    names = ("method", "bits", "bytes", "seeds", *score_titles(), "min(k, R) form",
             "tie-aware Hamming", "1@10", "10@10", RECALL, "100@1000", "fit, s", "items/s")  # fmt: skip
    lines = []
    for row in rows:
        if not row.cells:
            continue
        shown = [
            html.escape(row.method.title),
            f"{row.bits:,}" if row.method.size != "float" else "",
            f"{row.measured('bytes') or 0:,.0f}",
            str(len(row.cells)),
            *score_cells(row, "map"),
            percent(row, row.main_score, "map_min_k_r"),
            percent(row, "hamming", "expected_map"),
            *(percent(row, row.main_score, name) for name in ("1@10", "10@10", RECALL, "100@1000")),
            f"{row.measured('fit_seconds') or 0:.1f}",
            f"{row.measured('encode_rate') or 0:,.0f}",
        ]
        lines.append("<tr>" + "".join(f"<td>{text}</td>" for text in shown) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _figure(rows: list[Row], name: str, caption: str) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = row.value(row.main_score, name)
        if value is not None:
            lines.setdefault(row.method.title, []).append((row.measured("bytes") or 0, value[0]))
    return figure(figures.methods_figure(lines, caption.split(" against")[0]), caption)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>crovca compare</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 13px; }}
th, td {{ text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #e6e9ee; }}
td:first-child {{ text-align: left; }} figure {{ margin: 1rem 0; }} figure img {{ max-width: 100%; }}
figcaption {{ color: #5b6675; font-size: 13px; }}
</style></head><body><h1>Which method, on these embeddings?</h1>{body}</body></html>
"""
