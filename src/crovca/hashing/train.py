"""The training loop. What differs between methods comes in as arguments: the views, the network, the objective."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from crovca.errors import InvalidInputError, TrainingError
from crovca.hashing.config import TrainingConfig
from crovca.hashing.monitor import BitMonitor
from crovca.hashing.objective import Objective, hash_loss
from crovca.hashing.process_group import ALONE, ProcessGroup
from crovca.hashing.state import Checkpoint
from crovca.hashing.towers import Towers
from crovca.hashing.views import ViewSource

_LOG_EVERY = 10
_PERMUTATION, _STEP, _MODEL = 1, 2, 3  # purposes of random streams


@dataclass(frozen=True)
class Progress:
    """State of a run after a step; a line of the log.

    Attributes:
        step: steps done, of ``steps``.
        epoch: epoch of that step, from 1.
        loss: the weighted sum of the terms.
        terms: of the objective, by name: alignment in nats a bit, diversity the coding rate (larger is better).
        balance_min, balance_max: smallest and largest share of ones of a bit in this epoch.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    terms: dict[str, float]
    balance_min: float
    balance_max: float
    learning_rate: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every term under its name."""
        values = asdict(self)
        place = list(values).index("terms")
        items = list(values.items())
        return dict([*items[:place], *self.terms.items(), *items[place + 1 :]])


class Observer(Protocol):
    """Is told how a run goes."""

    def advance(self, stage: str, share: float) -> None:
        """A stage of preparation ("neighbors") has done this share of its work."""

    def progress(self, state: Progress) -> None:
        """Some steps were done."""

    def message(self, text: str) -> None:
        """Something a person should know: a choice that was made, bits that are dead."""


class Silent:
    """An observer that says nothing."""

    def advance(self, stage: str, share: float) -> None:
        """Ignored."""

    def progress(self, state: Progress) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Cosine from ``learning_rate`` at step 0 towards ``final_learning_rate`` at the end, without warm-up."""
    low, high = config.final_learning_rate, config.learning_rate
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * step / steps))


def random_of(config: TrainingConfig, *key: int) -> np.random.Generator:
    """A random stream of its own for each purpose and number, so that a run can start again anywhere."""
    return np.random.default_rng([config.seed, *key])


def train(
    model: Towers,
    source: ViewSource,
    objective: Objective,
    config: TrainingConfig,
    *,
    device: torch.device,
    observer: Observer,
    checkpoint: Checkpoint | None = None,
    process_group: ProcessGroup = ALONE,
    prefetch: int = 0,
) -> list[dict[str, Any]]:
    """Minimize the objective; ``model`` and ``objective`` are changed in place and left in evaluation mode.

    Args:
        model: views [(B, d_1), ...] to logits (v, B, bits); its parameters that need a gradient are trained.
        source: the views of the items.
        objective: (logits, rows) to named terms; a module, whose parameters are trained as well.
        config: settings.
        device: where to compute; on CUDA the network runs in bfloat16, the objective in float32.
        observer: is told how it goes.
        checkpoint: where to keep the state, to go on after an interruption.
        process_group: processes that train together; each gives the model the views of its part of the batch.
        prefetch: batches whose views another thread prepares while the model computes.

    Returns:
        The log: ``Progress.to_dict`` of every tenth step and the last.

    Raises:
        TrainingError: the loss is not finite.
        InvalidInputError: fewer items than processes.
    """
    assert isinstance(objective, nn.Module)
    learned = nn.ModuleList([model, objective]).to(device).train()
    parameters = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda"))
    plan = _Plan.of(len(source), config, process_group)
    steps = plan.steps
    log: list[dict[str, Any]] = []
    first = 0
    modalities = [tower.modality for tower in model]
    names = [f"{name}: " for name in modalities] if len(modalities) > 1 else [""]
    monitors = [BitMonitor(config.bits, name).to(device) for name in names]
    state = {"model": model, "objective": objective, "monitors": nn.ModuleList(monitors)}
    if checkpoint is not None and (resumed := checkpoint.restore(state, optimizer)):
        first, log = resumed
        observer.message(f"going on from step {first:,} of {steps:,}")
    low_precision = device.type == "cuda" and torch.cuda.is_bf16_supported()

    for step, rows, views in _batches(source, config, plan, first, process_group, prefetch):
        epoch, place = divmod(step, plan.steps_per_epoch)
        model.begin_step(epoch, int(random_of(config, _MODEL, step, process_group.rank).integers(2**63)))
        with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
            logits: Tensor = model([_moved(view, device) for view in views])  # (v, B, b)
        terms = objective(logits, torch.from_numpy(rows).to(device))
        loss = hash_loss(terms, objective.weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        process_group.mean_gradients(parameters)
        rate = learning_rate(step, steps, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        _update(monitors, logits.detach(), first_of_epoch=place == 0)

        done = step + 1
        if done % _LOG_EVERY == 0 or done == steps:
            total = float(loss.detach())
            if not math.isfinite(total):
                raise TrainingError(
                    f"the loss became {total} at step {done}; lower the learning rate "
                    f"(now {config.learning_rate}) or scale the embeddings down"
                )
            balance = list(chain.from_iterable(monitor.balance() for monitor in monitors))
            values = {name: float(term.detach()) for name, term in terms.items()}
            progress = Progress(done, steps, epoch + 1, total, values, min(balance), max(balance), rate)
            log.append(progress.to_dict())
            observer.progress(progress)
        if place == plan.steps_per_epoch - 1:
            for text in chain.from_iterable(monitor.news() for monitor in monitors):
                observer.message(f"epoch {epoch + 1}: {text}")
        if checkpoint is not None and done < steps:
            checkpoint.save_if_due(done, log, state, optimizer)
    learned.eval()
    return log


class _Plan(NamedTuple):
    """Whole batches only, each divided evenly among the processes."""

    items: int
    batch: int
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, items: int, config: TrainingConfig, process_group: ProcessGroup) -> _Plan:
        batch = min(config.batch_size, items)
        batch -= batch % process_group.size
        if batch == 0:
            raise InvalidInputError(f"{items:,} items are too few for {process_group.size} processes; start fewer")
        return cls(items, batch, items // batch, config.epochs * (items // batch))


def _batches(
    source: ViewSource, config: TrainingConfig, plan: _Plan, first: int, process_group: ProcessGroup, prefetch: int
) -> Iterator[tuple[int, npt.NDArray[np.int64], Sequence[Any]]]:
    """Number, rows (of the whole batch) and views (of this process's part) of each step from ``first`` on."""
    numbered = _numbered_rows(config, plan, first)

    def views(step: int, rows: npt.NDArray[np.int64]) -> Sequence[Any]:
        return source.views(process_group.share(rows), random_of(config, _STEP, step))

    if not prefetch:
        yield from ((step, rows, views(step, rows)) for step, rows in numbered)
        return
    waiting: deque[tuple[int, npt.NDArray[np.int64], Future[Sequence[Any]]]] = deque()
    with ThreadPoolExecutor(1, "crovca-views") as thread:
        try:
            for step, rows in numbered:
                waiting.append((step, rows, thread.submit(views, step, rows)))
                if len(waiting) > prefetch:
                    number, whole, ready = waiting.popleft()
                    yield number, whole, ready.result()
            yield from ((number, whole, ready.result()) for number, whole, ready in waiting)
        finally:
            thread.shutdown(cancel_futures=True)


def _numbered_rows(config: TrainingConfig, plan: _Plan, first: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    order = np.empty(0, np.int64)
    for step in range(first, plan.steps):
        epoch, place = divmod(step, plan.steps_per_epoch)
        if place == 0 or step == first:
            order = random_of(config, _PERMUTATION, epoch).permutation(plan.items)
        yield step, order[place * plan.batch : (place + 1) * plan.batch]


def _moved(view: Any, device: torch.device) -> Any:
    """Tensors on the device; texts stay what they are."""
    return view.to(device, non_blocking=True) if isinstance(view, Tensor) else view


def _update(monitors: Sequence[BitMonitor], logits: Tensor, *, first_of_epoch: bool) -> None:
    """Show each network's monitor its logits; of one network the first view's."""
    for monitor, view in zip(monitors, logits, strict=False):
        if first_of_epoch:
            monitor.reset()
        monitor.update(view)
