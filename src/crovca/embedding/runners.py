"""Who embeds which shard: this process, several on this machine, the ranks of a launcher, or Ray.

Every runner calls ``pipeline.embed_shard`` for shards that are missing, and says how many items were dealt with.
None keeps a state of its own: what is done is what stands in the store. A worker that dies ends the run with an
error, and the next run goes on.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from crovca.embedding.job import Job
from crovca.embedding.pipeline import Advance, Worker, embed_shard, open_worker
from crovca.errors import ConfigError, CrovcaError, WorkerError, needed

Runner = Literal["local", "rank", "ray"]

_RAY_CPUS = 0.5  # of an actor: where actors hold every core, Ray's own tasks wait for ever
_RANKS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Rank:
    """This process among those that a launcher started.

    Attributes:
        number, process_group: it is the ``number``-th of ``process_group``, from 0 on.
        local: its number among those on this machine.
    """

    number: int
    process_group: int
    local: int

    def shards(self, shards: Sequence[int]) -> list[int]:
        """Those of the shards that are this rank's."""
        return [shard for shard in shards if shard % self.process_group == self.number]


def find_rank(environment: dict[str, str] | None = None) -> Rank:
    """This process's rank, from RANK and WORLD_SIZE (torchrun, accelerate) or SLURM_PROCID and SLURM_NTASKS (srun)."""
    known = dict(os.environ) if environment is None else environment
    for number, process_group, local in _RANKS:
        if number in known and process_group in known:
            try:
                rank = Rank(int(known[number]), int(known[process_group]), int(known.get(local, 0)))
            except ValueError:
                raise ConfigError(
                    f"{number}={known[number]!r}, {process_group}={known[process_group]!r}: expected numbers"
                ) from None
            if not 0 <= rank.number < rank.process_group:
                raise ConfigError(f"{number}={rank.number} must lie in [0, {process_group}={rank.process_group})")
            return rank
    raise ConfigError(
        "--runner rank needs RANK and WORLD_SIZE, or SLURM_PROCID and SLURM_NTASKS; "
        "start it with torchrun or srun, or set them"
    )


def device_of(job: Job, number: int) -> str:
    """The device of the ``number``-th worker on this machine."""
    if job.device != "cuda":
        return job.device
    import torch

    return f"cuda:{number % max(1, torch.cuda.device_count())}"


def run_here(worker: Worker, store: Path, shards: Sequence[int], advance: Advance) -> None:
    """Embed shards in this process, one after the other."""
    for shard in shards:
        embed_shard(worker, store, shard, advance)


def run_processes(job: Job, store: Path, shards: Sequence[int], advance: Advance, workers: int) -> None:
    """Embed shards in several processes on this machine, each taking the next as it becomes free.

    Raises:
        WorkerError: a process died; the others are ended, what is done stays.
        CrovcaError: what went wrong in a process.
    """
    context = _context(job.device)
    waiting = deque(shards)
    processes: dict[Connection, Any] = {}
    try:
        for number in range(min(workers, len(shards))):
            ours, theirs = context.Pipe()
            arguments = (theirs, job, store, device_of(job, number), workers)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            ours.send(waiting.popleft())
        while processes:
            for connection in wait(list(processes)):
                assert isinstance(connection, Connection)
                try:
                    kind, content = connection.recv()
                except EOFError:
                    raise _died(processes[connection]) from None
                if kind == "error":
                    raise content
                if kind == "items":
                    advance(content)
                elif waiting:
                    connection.send(waiting.popleft())
                else:
                    connection.send(None)
                    processes.pop(connection).join()
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _context(device: str) -> Any:
    """How processes start: threads and CUDA do not survive a fork of this one.

    On the processors of Linux they are forks of a process that has imported what they need, and nothing else: each
    would take seconds for it.
    """
    if device != "cpu" or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.modeling_utils"])
    return context


def _serve(connection: Connection, job: Job, store: Path, device: str, workers: int) -> None:
    """A worker process: embed the shards that come over the connection until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us ends us
    try:
        try:
            worker = open_worker(job, device=device, share=workers)
            while (shard := connection.recv()) is not None:
                embed_shard(worker, store, shard, lambda items: connection.send(("items", items)))
                connection.send(("done", shard))
        except CrovcaError as error:
            connection.send(("error", WorkerError(str(error), error.exit_status)))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the one who started us is gone
        return


def _died(process: Any) -> WorkerError:
    process.join()
    code = process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    why = " (often: not enough memory)" if code == -signal.SIGKILL else ""
    return WorkerError(f"a worker process {how}{why}; the same command goes on with what is missing", exit_status=1)


def run_ray(job: Job, store: Path, shards: Sequence[int], advance: Advance, workers: int) -> None:
    """Embed shards in actors of Ray Data, on the cluster that RAY_ADDRESS names or on this machine.

    Every machine of the cluster must see the source, the encoder and the store under the same paths.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: the cluster has not room for so many actors, which Ray would wait for without end.
        CrovcaError: what went wrong in an actor.
    """
    ray = needed("ray", "ray", "--runner ray")
    importlib.import_module("ray.data")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    gpus = 1 if job.device == "cuda" else 0
    room = ray.cluster_resources()
    if room.get("CPU", 0) < _RAY_CPUS * workers + _RAY_CPUS or room.get("GPU", 0) < gpus * workers:
        raise ConfigError(
            f"Ray has {room.get('CPU', 0):g} processors and {room.get('GPU', 0):g} GPUs: "
            f"too few for --workers {workers}"
        )
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tasks = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    results = tasks.map(
        _Actor,
        fn_constructor_args=(_absolute(job), str(store.resolve()), workers if not gpus else 1),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_cpus=_RAY_CPUS,
        num_gpus=gpus,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise WorkerError(row["error"], exit_status=row["status"])
        advance(row["items"])


def _absolute(job: Job) -> Job:
    """The job with paths that hold in any folder."""
    root = None if job.origin.root is None else str(Path(job.origin.root).resolve())
    origin = replace(job.origin, path=str(Path(job.origin.path).resolve()), root=root)
    encoder = str(Path(job.encoder).resolve()) if Path(job.encoder).is_dir() else job.encoder
    return replace(job, origin=origin, encoder=encoder)


class _Actor:
    """Embeds one shard at a call; its worker is opened at the first."""

    def __init__(self, job: Job, store: str, share: int) -> None:
        self._job, self._store, self._share = job, Path(store), share
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = int(row["shard"])
        try:
            if self._worker is None:
                self._worker = open_worker(self._job, share=self._share)
            embed_shard(self._worker, self._store, shard)
        except CrovcaError as error:
            return {"shard": shard, "items": 0, "error": str(error), "status": error.exit_status}
        return {"shard": shard, "items": len(self._job.rows(shard)), "error": "", "status": 0}
