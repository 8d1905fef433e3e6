"""``crovca demo``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Option

from crovca.cli.options import Force, Json, Report, check_report
from crovca.cli.output import Reporter, emit_json, print_table, say

_NEXT = """What the numbers say: a query is an image that the codes have not seen; mAP@{k} is high where images of the
same digit come first. The class names are vectors of character n-grams, a stand-in for a text encoder.

Next, with your own data (an .npz with 'embeddings' (n, d), and 'labels' if you have them):
  crovca train embeddings.npz -o model              learn the codes; with labels their classes are learned
  crovca encode model embeddings.npz -o codes.npz   2 to 32 bytes an item
  crovca evaluate model --database embeddings.npz --query queries.npz --report report"""


def demo(
    report: Report = None,
    archive: Annotated[
        Path | None, Option(help="Folder for an archive of the digits as pictures, to look at in the browser.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Hash codes of real handwritten digits in under a minute: train, search, measure."""
    if report is not None:
        check_report(report, force=force)
    if archive is not None:
        from crovca.archive.demo_archive import check_demo_archive, write_demo_archive

        check_demo_archive(archive, force=force)
    from crovca.archive.demo import run_demo

    started = time.perf_counter()

    with Reporter() as reporter:
        result = run_demo(reporter.stage)
        if report is not None:
            from crovca.evaluation.report import write_report

            reporter.stage("report")
            write_report(report, result.subjects, force=force)
        if archive is not None:
            reporter.stage("archive")
            write_demo_archive(archive, force=force, observer=reporter)
    if json:
        rows = [asdict(row) for row in result.rows]
        emit_json({"k": result.k, "rows": rows, "seconds": round(result.seconds, 2)})
        return
    lines = [
        (row.what, row.bytes_per_item, f"{100 * row.map:.1f}", "" if row.seconds is None else f"{row.seconds:.1f}")
        for row in result.rows
    ]
    head = ("", "bytes an item", f"mAP@{result.k}, %", "training, s")
    print_table(head, lines, "Handwritten digits: 300 queries on 1,497 images")
    if report is not None:
        say(f"report with figures: {report / 'index.html'}\n")
    say(_NEXT.format(k=result.k))
    say(f"\n{time.perf_counter() - started:.0f} s in all")
    if archive is not None:
        say(f"\nTo search the digits with pictures, in the browser: crovca serve {archive}")
