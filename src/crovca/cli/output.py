"""What the commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console as _Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from crovca.errors import ConfigError, CrovcaWarning, printable
from crovca.files import atomic_file

if TYPE_CHECKING:
    from crovca.archive.archive import LeftOut
    from crovca.data.store import ItemError
    from crovca.hashing.train import Progress as TrainingProgress

_WIDTH_OF_FILES = 120
_FIRST = 10  # of a long list


class Console(_Console):
    """Prints text as it stands, in tables too: no markup, and what a terminal would obey is shown instead.

    Ids, labels and messages of errors come from anybody's files.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string goes through here, alone or in a table's cell."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


stdout = Console()
if not stdout.is_terminal:
    stdout.width = _WIDTH_OF_FILES
stderr = Console(stderr=True, highlight=False)


def say(*lines: str) -> None:
    """Print lines on standard output as they stand, however long."""
    for line in lines:
        stdout.print(line, highlight=False, soft_wrap=True)


def answer(json: bool, content: dict[str, Any], *lines: str) -> None:
    """What a command has to say: one JSON object, or lines for a person."""
    if json:
        emit_json(content)
    else:
        say(*lines)


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, *, right: bool = True
) -> None:
    """A table on standard output; its columns but the first stand to the right, unless ``right`` is False."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number and right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    stdout.print(table)


def print_plain(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str]) -> None:
    """A long table without lines; the columns named in ``right`` stand to the right."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*map(str, row))
    stdout.print(table)


def emit_json(content: dict[str, Any], *, default: Callable[[Any], Any] | None = None) -> None:
    """One JSON object on standard output; NaN and infinity are null in it, which a note says.

    ``default`` makes of a value that JSON does not know one that it does.
    """
    text = json.dumps(content, default=default)
    lost: list[str] = []
    found = json.loads(text, parse_constant=lost.append)  # which returns None
    if lost:
        note(f"{len(lost):,} numbers that JSON cannot hold (NaN, infinity) are null")
    sys.stdout.write((json.dumps(found) if lost else text) + "\n")


@contextmanager
def notes_for_warnings() -> Iterator[None]:
    """Print each CrovcaWarning, and what the library logs, as a line ``note: ...`` on standard error.

    Of the log warnings are shown, or with CROVCA_LOG=info (debug, warning, error) what is at least that.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, CrovcaWarning):
            note(str(message))
        else:
            default(message, category, filename, lineno, file, line)

    logger, handler = logging.getLogger("crovca"), _Notes()
    wanted, level = _level(), logger.level
    logger.addHandler(handler)
    logger.setLevel(wanted)
    try:
        with warnings.catch_warnings():
            default = warnings.showwarning
            warnings.simplefilter("always", CrovcaWarning)
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _level() -> int:
    name = os.environ.get("CROVCA_LOG", "warning")
    levels = logging.getLevelNamesMapping()
    if name.upper() not in levels:
        raise ConfigError(f"CROVCA_LOG must be debug, info, warning or error, got {name!r}")
    return levels[name.upper()]


class _Notes(logging.Handler):
    """Prints what is logged: warnings as notes, the rest with its level and module."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno == logging.WARNING:
            note(text)
        else:
            stderr.print(f"{record.levelname.lower()}: {record.name}: {text}", markup=False, soft_wrap=True)


def note(text: str) -> None:
    """A line on standard error."""
    stderr.print(f"note: {text}", markup=False, soft_wrap=True)


def tell_left_out(items: Sequence[ItemError | LeftOut], file: Path | None) -> None:
    """Name the first items that were left out, and why; all of them go to a .csv where one is named."""
    rows = [(one.id, one.reason, one.detail) for one in items]
    for id, reason, detail in rows[:_FIRST]:
        note(f"left out: {id}: {reason}: {detail}")
    if len(rows) > _FIRST:
        where = f"all stand in {file}" if file else "--left-out FILE.csv writes all of them"
        note(f"... and {len(rows) - _FIRST:,} more; {where}")
    if file is not None:
        text = io.StringIO()
        csv.writer(text).writerows([("id", "reason", "detail"), *rows])
        with atomic_file(file) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


class Reporter:
    """Shows how a run goes: a progress bar on a terminal, and notes. An ``Observer`` of training."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if stderr.is_interactive:  # elsewhere a bar would leave empty lines
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if stderr.is_interactive:
            self._bar.stop()

    def advance(self, stage: str, share: float) -> None:
        """A stage of preparation has done this share of its work."""
        self._bar.update(self._task(stage), completed=share)

    def progress(self, state: TrainingProgress) -> None:
        """Some training steps were done."""
        terms = "  ".join(f"{name} {value:.3f}" for name, value in state.terms.items())
        self._bar.update(
            self._task("training"),
            completed=state.step / state.steps,
            state=f"epoch {state.epoch}  loss {state.loss:.3f}  {terms}  "
            f"bits {state.balance_min:.2f}-{state.balance_max:.2f}",
        )

    def message(self, text: str) -> None:
        """Something a person should know."""
        self.notes.append(text)
        note(text)

    def stage(self, what: str) -> None:
        """Name what is being done, without a measure."""
        self._bar.update(self._task("evaluating"), state=printable(what))

    def tell(self, what: str) -> None:
        """``stage``, as a line where there is no bar."""
        self.stage(what)
        if not stderr.is_interactive:
            stderr.print(what, soft_wrap=True)

    def _task(self, name: str) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(printable(name), total=1.0, state="")
        return self._tasks[name]


def counted(count: int, what: str = "item") -> str:
    """ "1 item", "2 items"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
