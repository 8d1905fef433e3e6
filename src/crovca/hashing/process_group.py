"""Several processes that train one model together.

Each process embeds its share of a batch. The networks' outputs before the batch normalization, a few numbers an item,
are then gathered in every process, and everything after that (batch normalization, teacher, loss, statistics) is
computed on the whole batch, in each process alike: so it is what one process would compute. A gradient that flows
back through ``ProcessGroup.gather`` is multiplied by the number of processes, so that the mean of all processes'
gradients is the gradient of the whole batch, for the parameters before it as for those after it.

Every process must learn at once that another one failed, or it waits for it until a timeout: ``ProcessGroup.first``
sends whatever the first process raised; a process that fails elsewhere closes its connections (``hasher.processes``),
and what the others are exchanging with it becomes a ``WorkerError``.

Needs ``torch.distributed`` alone, with any of its backends (gloo on CPUs, NCCL on GPUs).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from crovca.errors import CrovcaError, WorkerError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, and which of them this is. With one process every method gives back what it was given.

    Attributes:
        rank: this process's number, from 0 on; only 0 writes and speaks.
        size: number of processes.
        local: how many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 1

    def share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This process's part of the rows of a batch; the parts in order of rank are the batch."""
        return np.array_split(rows, self.size)[self.rank]

    def gather(self, part: Tensor, dim: int = 0) -> Tensor:
        """The parts of all processes along ``dim``, in order of rank, with gradient; all of the same shape."""
        if self.size == 1:
            return part
        whole: Tensor = _Gather.apply(part.movedim(dim, 0), self)  # type: ignore[no-untyped-call]
        return whole.movedim(0, dim)

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set every gradient to its mean over the processes; parameters without one have none in any process."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _exchange(dist.all_reduce, flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def collect(self, content: T) -> list[T]:
        """Something small of every process, in order of rank."""
        if self.size == 1:
            return [content]
        found: list[Any] = [None] * self.size
        _exchange(dist.all_gather_object, found, content)
        return found

    def first(self, action: Callable[[], T]) -> T:
        """What ``action`` gives in the first process; it runs there alone. Its error, of whatever type, ends them all.

        Raises:
            WorkerError: in the other processes; the first raises the error itself.
        """
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except BaseException as error:  # whatever it is, Ctrl-C too: the others wait to hear of it
                with suppress(WorkerError):  # they are gone: its own error says more
                    _exchange(dist.broadcast_object_list, [None, _described(error)], 0)
                raise
        _exchange(dist.broadcast_object_list, outcome, 0)
        if outcome[1] is not None:
            raise WorkerError(*outcome[1])
        return outcome[0]


ALONE = ProcessGroup()
"""One process."""


def _exchange(collective: Callable[..., object], *arguments: object) -> None:
    """Call a collective of ``torch.distributed``; where it fails, another process has most likely ended.

    Raises:
        WorkerError: in place of torch's error, of which the traceback is dropped: it refers to the process group, and
            only a group that nothing refers to closes its connections, for which yet other processes may wait.
    """
    try:
        collective(*arguments)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise WorkerError(
            f"the exchange with the other processes failed; if one has ended, its own error says why ({reason})"
        ) from error.with_traceback(None)


def _described(error: BaseException) -> tuple[str, int]:
    """Message and exit status of the ``WorkerError`` that an error is in the other processes."""
    if isinstance(error, CrovcaError):
        return str(error), error.exit_status
    return "".join(traceback.format_exception_only(error)).strip(), 1


class _Gather(torch.autograd.Function):
    """All processes' parts (n, ...) as one tensor (size n, ...)."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(process_group.size)]
        _exchange(dist.all_gather, parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        process_group: ProcessGroup = ctx.process_group
        return gradients[0].chunk(process_group.size)[process_group.rank] * process_group.size, None
