"""Two processes (gloo, on the CPU) do what one does."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from crovca.errors import ConfigError, InvalidInputError, WorkerError
from crovca.hasher.processes import launched
from crovca.hashing.process_group import ALONE, ProcessGroup
from tests.hasher import failing, worker
from tests.needs import needs
from tests.started import Started

needs("accelerate")
ROOT = Path(__file__).parents[2]


def launch(arguments, processes=2):
    """Start processes as torchrun does, wait for them, and give what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        variables = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
        }
        started.append(Started(arguments, env=variables))
    said = [process.communicate() for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


@pytest.mark.starts
def test_two_processes_compute_what_one_computes(tmp_path, encoder, photos):
    """Loss and gradients of the second step, and the model's logits: the coding rate, the batch normalization and the
    class prototypes are those of the whole batch."""
    ended = launch([Path(worker.__file__), tmp_path, encoder, photos])
    assert [status for status, _, _ in ended] == [0, 0], ended
    alone = worker.results(encoder, photos, ALONE)
    halves = [dict(np.load(tmp_path / f"{rank}-of-2.npz")) for rank in range(2)]
    gradients = 0
    for name, expected in alone.items():
        # Of the size of the numbers. Biases before a batch normalization have gradients of 0 but for rounding, of which
        # Adam makes steps of full length: after them the logits agree less closely.
        share = 1e-2 if name.endswith("logits") else 1e-3
        tolerance = max(share * np.abs(expected).max(), 1e-5)
        for half in halves:
            np.testing.assert_allclose(half[name], expected, rtol=0, atol=tolerance, err_msg=name)
        gradients += "gradient" in name and bool(np.abs(expected).max() > 1e-5)
    # Head and adapters have gradients that are not 0, about ten parameters in each case.
    assert gradients > 30
    assert all(np.array_equal(halves[0][name], halves[1][name]) for name in alone)
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]  # an error of the first ends all
    assert said == ["ConfigError: the first process will not", "WorkerError: the first process will not"]


def test_a_share_of_the_batch_alone_would_not_do(encoder, photos):
    """The test above can fail: half a batch has another loss."""
    half = worker.SETTINGS | {"batch_size": 12}
    hasher = worker.Hasher.for_images(encoder, **half).fit(photos)
    whole = worker.Hasher.for_images(encoder, **worker.SETTINGS).fit(photos)
    assert abs(hasher.history_[-1]["loss"] - whole.history_[-1]["loss"]) > 1e-3


@pytest.mark.starts
def test_the_command_with_a_launcher_writes_one_model(tmp_path, encoder, photos):
    """Only the first process speaks and writes."""
    command = ["-m", "crovca.cli.main", "finetune", photos, "--encoder", encoder, "--bits", "8"]
    command += ["--epochs", "2", "--batch-size", "12", "--device", "cpu", "-o", tmp_path / "model"]
    ended = launch(command)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "codes of 8 bits, trained in" in ended[0][1]
    assert ended[1][1] == ""
    assert "Traceback" not in ended[0][2] + ended[1][2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.starts
def test_whatever_the_first_process_raises_reaches_the_others(tmp_path):
    """While it lives on, and stays in the group."""
    ended = launch([Path(failing.__file__), tmp_path, "in the first"])
    assert [status for status, _, _ in ended] == [0, 0], ended
    for number, error in enumerate(failing.FIRST):
        first, other = [(tmp_path / f"{number}-{rank}.txt").read_text() for rank in range(2)]
        assert first == f"{type(error).__name__}: {error}"
        assert other == "WorkerError: " + first.removesuffix(": ")


@pytest.mark.parametrize(("case", "processes"), [("gather", 3), ("train", 2)])
@pytest.mark.starts
def test_a_process_that_fails_lets_the_others_go(tmp_path, encoder, photos, case, processes):
    """Though it lives on. Of three, one may wait for another that waits for it."""
    ended = launch([Path(failing.__file__), tmp_path, case, encoder, photos], processes)
    assert [status for status, _, _ in ended] == [0] * processes, ended
    *others, last = [(tmp_path / f"{rank}.txt").read_text() for rank in range(processes)]
    assert last == "OSError: the disk is gone"
    assert all(said.startswith("WorkerError: the exchange with the other processes failed") for said in others)


def test_whatever_fails_between_processes_is_their_error(monkeypatch):
    def fail(*_):
        raise RuntimeError("Connection closed by peer\nand more")

    for name in ("all_gather", "all_gather_object", "all_reduce", "broadcast_object_list"):
        monkeypatch.setattr(dist, name, fail)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    process_group = ProcessGroup(0, 2)
    for exchange in (
        lambda: process_group.gather(torch.ones(2)),
        lambda: process_group.mean_gradients([parameter]),
        lambda: process_group.collect(1),
        lambda: process_group.first(lambda: 1),
    ):
        with pytest.raises(WorkerError, match=r"failed; .* \(Connection closed by peer\)$") as caught:
            exchange()
        assert caught.value.__cause__.__traceback__ is None  # it would keep the group alive
    with pytest.raises(ZeroDivisionError):  # its own error says more than that the others are gone
        process_group.first(lambda: 1 // 0)


def test_too_few_gpus_are_refused_by_every_process(monkeypatch):
    """By the first as well, for which there is one: it would wait for the second to join."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(ConfigError, match="2 processes on this machine, but 1 GPUs"), launched():
            pass


def test_shares_are_the_batch():
    rows = np.arange(12)
    parts = [ProcessGroup(rank, 3).share(rows) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), rows)
    assert len({len(part) for part in parts}) == 1


def test_more_processes_than_items_are_refused():
    from crovca.hashing.config import TrainingConfig
    from crovca.hashing.train import _Plan

    config = TrainingConfig(lengths=(8,), epochs=2, batch_size=10)
    assert _Plan.of(25, config, ProcessGroup(0, 3)) == (25, 9, 2, 4)
    with pytest.raises(InvalidInputError, match="2 items are too few for 3 processes"):
        _Plan.of(2, config, ProcessGroup(0, 3))
