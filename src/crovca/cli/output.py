"""What the commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crovca.errors import CrovcaWarning

if TYPE_CHECKING:
    from crovca.hashing.train import Progress as TrainingProgress

__all__ = ["Reporter", "emit_json", "notes_for_warnings", "stderr", "stdout"]

_WIDTH_OF_FILES = 120

stdout = Console()
if not stdout.is_terminal:
    stdout.width = _WIDTH_OF_FILES
stderr = Console(stderr=True, highlight=False)


def emit_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")


@contextmanager
def notes_for_warnings() -> Iterator[None]:
    """Print each CrovcaWarning as a line ``note: ...`` on standard error."""

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

    with warnings.catch_warnings():
        default = warnings.showwarning
        warnings.simplefilter("always", CrovcaWarning)
        warnings.showwarning = show
        yield


def note(text: str) -> None:
    """A line on standard error."""
    stderr.print(f"note: {text}", markup=False, soft_wrap=True)


class Reporter:
    """Shows how a run goes: a progress bar on a terminal, and notes. An ``Observer`` of training."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if stderr.is_interactive:  # elsewhere a bar would leave empty lines
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def embedded(self, done: int, total: int, rate: float, what: str) -> None:
        """So many items of all were embedded, at so many a second."""
        self._bar.update(
            self._task("embedding"),
            completed=done / total,
            state=f"{done:,} of {total:,} {what}  {rate:,.0f} a second",
        )

    def message(self, text: str) -> None:
        """Something a person should know."""
        self.notes.append(text)
        note(text)

    def stage(self, what: str) -> None:
        """Name what is being done, without a measure."""
        self._bar.update(self._task("evaluating"), state=what)

    def _task(self, name: str) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=1.0, state="")
        return self._tasks[name]
