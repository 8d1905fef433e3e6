"""The processes that a launcher started for one training run (``torchrun``, ``accelerate launch``)."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crovca.errors import ConfigError, MissingDependencyError
from crovca.hashing.process_group import ALONE, ProcessGroup


@contextmanager
def launched(device: str = "auto") -> Iterator[tuple[ProcessGroup, str]]:
    """Join the processes of a launcher, if there is one, and part from them at the end.

    Args:
        device: "auto", "cpu" or "cuda"; with several processes each takes the GPU of its number on its machine.

    Yields:
        The process group, and the device of this process. An error that leaves the block closes this process's
        connections, so that the others end as well (``WorkerError``). NCCL's do not notice: of those the launcher takes
        care, once this process has ended.

    Raises:
        ConfigError: a certain GPU for several processes, or fewer GPUs than processes.
        MissingDependencyError: accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield ALONE, device
        return
    if ":" in device:
        raise ConfigError(f"several processes cannot share {device!r}; give --device cuda, cpu or auto")
    if importlib.util.find_spec("accelerate") is None:
        raise MissingDependencyError("accelerate", "images", "training in several processes")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # All of them refuse: some alone would leave the others waiting for them to join.
    if not on_cpu and max(here, local + 1) > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes on this machine, but {torch.cuda.device_count()} GPUs; start as many as there are GPUs"
        )
    # This module makes the group that there is when it is first imported a default argument of its functions, and
    # transformers imports it. Such a group outlives destroy_process_group, which ends gloo's threads only with the last
    # reference; a thread that lets go of a tensor while the interpreter is being finalized aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    state = importlib.import_module("accelerate").PartialState(cpu=on_cpu)
    together = False
    try:
        where = str(state.device) if device != "cpu" else "cpu"
        yield ProcessGroup(state.process_index, state.num_processes, here), where
        together = True
    finally:
        # NCCL's group is destroyed by all processes together: one that failed would wait for the others, which wait for
        # it, and would not end. gloo's closes the connections, by which the others notice.
        if together or state.backend != "nccl":
            state.destroy_process_group()
        state._reset_state()
