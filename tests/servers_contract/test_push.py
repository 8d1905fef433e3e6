"""A push brings the server to the index's state, whatever was there, however often it is killed."""

import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crovca import Codes, HashIndex
from crovca.errors import InvalidInputError, ServerError
from crovca.servers.connection import connect, create
from crovca.servers.push import push, push_to
from crovca.servers.state import PushState
from tests.servers_contract.conftest import FILES
from tests.servers_contract.push_process import index_of
from tests.servers_contract.samples import MemoryIndex, records, sample
from tests.started import Started

ROOT = Path(__file__).resolve().parents[2]


def contents(cluster):
    """All that is stored."""
    parts = [cluster.get(part) for part in list(cluster.stored_ids())]
    return {one: row for part in parts for one, row in records(part).items()}


@contextmanager
def counting_writes(cluster):
    """How many rows are sent."""
    sent = []
    original = cluster.upsert_rows
    cluster.upsert_rows = lambda rows: (sent.append(len(rows)), original(rows))[1]
    try:
        yield sent
    finally:
        cluster.upsert_rows = original


@pytest.mark.parametrize("id_type", ["int64", "string"])
def test_a_push_and_what_follows(make, id_type):
    bits = 64 if id_type == "int64" else 13
    cluster = make(bits, id_type)
    ids, codes, metadata = sample(300, bits, id_type=id_type)
    index = MemoryIndex(bits, id_type).upsert(ids, codes, metadata)
    seen = []
    result = push(index, cluster, batch_size=128, progress=lambda done, total: seen.append((done, total)))
    assert (result.items, result.written, result.deleted, result.unchanged) == (300, 300, 0, False)
    assert seen == [(128, 300), (256, 300), (300, 300)]
    assert contents(cluster) == index.records()

    with counting_writes(cluster) as sent:  # once more: nothing
        assert push(index, cluster, batch_size=50).unchanged
        assert sent == []

    index.delete(ids[:20].tolist())  # some go, some change, some come
    more_ids, more_codes, more = sample(60, bits, seed=9, id_type=id_type, first=1000)
    more_ids = more_ids if id_type == "int64" else np.array([f"more/{one}" for one in range(60)])
    index.upsert(more_ids, more_codes, more)
    index.upsert(ids[20:30], more_codes[:10], metadata[20:30])
    index.upsert(ids[30:35], codes[30:35], more[:5])
    with counting_writes(cluster) as sent:
        result = push(index, cluster, batch_size=100)
    assert (result.written, result.deleted) == (75, 20)
    assert sum(sent) == 75
    assert contents(cluster) == index.records()

    index.delete(list(index.items))
    result = push(index, cluster)
    assert (result.items, result.deleted, cluster.count()) == (0, 340, 0)
    assert push(index, cluster).unchanged


def test_another_index_is_not_overwritten(make):
    cluster = make(64)
    ids, codes, metadata = sample(40, 64)
    push(MemoryIndex(64, uuid="one").upsert(ids, codes, metadata), cluster)
    before = contents(cluster)
    other = MemoryIndex(64, uuid="other").upsert(ids[:5] + 1000, codes[:5], metadata[:5])
    with pytest.raises(ServerError, match="what was pushed from another index"):
        push(other, cluster)
    assert contents(cluster) == before
    assert push(other, cluster, force=True).deleted == 40
    assert contents(cluster) == other.records()


def test_items_that_were_not_pushed_are_not_removed_unasked(make):
    cluster = make(64)
    ids, codes, metadata = sample(40, 64)
    cluster.upsert(ids, codes, metadata)
    index = MemoryIndex(64).upsert(ids[10:], codes[10:], metadata[10:])
    with pytest.raises(ServerError, match="40 items that were not pushed"):
        push(index, cluster)
    assert cluster.count() == 40
    result = push(index, cluster, force=True)
    assert (result.written, result.deleted) == (0, 10)  # what was there just so is not sent
    assert contents(cluster) == index.records()


def test_a_changed_server_is_mended(make):
    """Items that someone removed behind the push's back are missed by their number."""
    cluster = make(64)
    ids, codes, metadata = sample(50, 64)
    index = MemoryIndex(64).upsert(ids, codes, metadata)
    push(index, cluster)
    cluster.delete(ids[:7])
    assert push(index, cluster).written == 7
    assert contents(cluster) == index.records()


def test_a_push_that_breaks_goes_on_where_it_stopped(make):
    cluster = make(64)
    index = MemoryIndex(64).upsert(*sample(500, 64))

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done >= 300:
            raise Stopped

    with pytest.raises(Stopped):
        push(index, cluster, batch_size=100, progress=stop)
    with counting_writes(cluster) as sent:
        result = push(index, cluster, batch_size=100)
    assert (result.resumed_at, result.written, sent) == (300, 200, [100, 100])
    assert contents(cluster) == index.records()


def test_between_a_batch_and_its_note(make, monkeypatch):
    """The worst moment: a batch has arrived, that it has is not noted yet."""
    cluster = make(64)
    index = MemoryIndex(64).upsert(*sample(300, 64))
    original = cluster.write_push

    def fails_after_two(state):
        if state.batches == 2:
            raise ConnectionError
        original(state)

    monkeypatch.setattr(cluster, "write_push", fails_after_two)
    with pytest.raises(ConnectionError):
        push(index, cluster, batch_size=100)
    monkeypatch.undo()
    result = push(index, cluster, batch_size=100)
    assert (result.resumed_at, result.written) == (100, 100)  # the second batch is compared, not sent again
    assert contents(cluster) == index.records()


def test_an_index_that_changed_since_a_killed_push(make):
    """What is noted of another generation is no reason to skip a batch."""
    cluster = make(64)
    ids, codes, metadata = sample(300, 64)
    index = MemoryIndex(64).upsert(ids, codes, metadata)
    cluster.write_push(PushState(index.uuid, index.generation, 100, 2))
    index.delete(ids[:50].tolist())
    assert push(index, cluster, batch_size=100).resumed_at == 0
    assert contents(cluster) == index.records()


@pytest.mark.parametrize(
    ("server", "items", "batch"),
    [
        ("postgres", 12_000, 100),
        ("milvus", 3_000, 200),
        *(pytest.param(file, 6_000, 100, marks=pytest.mark.slow) for file in FILES),
    ],
)
def test_kill_9_at_any_moment(servers, server, items, batch):
    """Killed at random moments, again and again, until one push ends; nothing is lost, nothing is left over."""
    url = servers.address(server)
    command = ["-m", "tests.servers_contract.push_process", url, items, batch, 5]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    choice = random.Random(0)
    starts, killed = [], 0
    for attempt in range(12):
        process = Started(command, cwd=ROOT, env=environment)
        for lines, line in enumerate(process.stdout, 1):
            starts += [int(line)] if lines == 1 else []
            if attempt < 5 and lines == 2:
                time.sleep(choice.random() * 0.06)  # somewhere in a later batch
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        if process.wait() == 0:
            break
        killed += 1
    assert killed >= 3
    assert starts == sorted(starts)
    assert len(set(starts)) > 3  # each went on where the one before had stopped
    index = index_of(items, 5)
    with connect(url) as cluster:
        assert cluster.count() == items
        assert contents(cluster) == index.records()
        assert push(index, cluster, batch_size=batch).unchanged


def test_two_pushes_at_once_are_refused_by_postgres(servers, monkeypatch):
    from crovca.servers import postgres

    monkeypatch.setattr(postgres, "_LOCK_WAIT", 0.3)
    url = servers.address("postgres")
    index = MemoryIndex(64).upsert(*sample(10, 64))
    with create(url, bits=64) as first, connect(url) as second:
        with first.push_lock(), pytest.raises(ServerError, match="another push into 'codes"):
            push(index, second)
        assert push(index, second).written == 10


def test_push_to_makes_the_collection(servers):
    url = servers.address("postgres")
    index = MemoryIndex(64).upsert(*sample(10, 64))
    assert push_to(index, url).written == 10
    assert push_to(index, url).unchanged
    wrong = MemoryIndex(32).upsert(*sample(10, 32))
    with pytest.raises(ServerError, match="holds codes of 64 bits with ids of type int64, expected 32 bits"):
        push_to(wrong, url)
    with pytest.raises(InvalidInputError, match="batch size must be at least 1"):
        push_to(index, url, batch_size=0)
    index.id_type = None
    with pytest.raises(InvalidInputError, match="nothing was ever added"):
        push_to(index, url)


def test_columns_that_come_later_and_go(servers):
    url = servers.address("postgres")
    ids, codes, _ = sample(3, 16)
    index = MemoryIndex(16).upsert(ids, codes, pa.table({"a": [1, 2, 3]}))
    push_to(index, url)
    index.upsert(ids, codes, pa.table({"b": ["x", None, "z"]}))
    assert push_to(index, url).written == 3
    with connect(url) as cluster:
        assert contents(cluster) == index.records()
        before = contents(cluster)
        index.upsert(ids, codes, pa.table({"a": ["x", "y", "z"]}))
        with pytest.raises(ServerError, match='column "a" is of type bigint but expression is of type text'):
            push(index, cluster)
        assert contents(cluster) == before


def test_a_copy_that_was_written_to_since_is_pushed_though_it_has_as_many_items_and_writes(tmp_path):
    """An index restored from a copy, then given other items: generation and number are those of what was pushed."""
    url = f"duckdb://{tmp_path}/codes.duckdb?table=codes"
    codes = Codes.from_bits(np.eye(3, 16, dtype=bool))
    HashIndex.create(tmp_path / "index", 16).close()
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    for name, ids in (("index", [1, 2, 3]), ("copy", [4, 5, 6])):
        with HashIndex.open(tmp_path / name, writable=True) as index:
            index.add(ids, codes)
            done = push_to(index, url)
            assert not done.unchanged and push_to(index, url).unchanged
        with connect(url) as database:
            assert sorted(np.concatenate(list(database.stored_ids())).tolist()) == ids


def test_the_state_of_a_newer_version_is_refused():
    state = PushState("a", 3, 10, 2)
    assert PushState.from_json(state.to_json()) == state
    for text in ("{", "[]", "{}", '{"format": 2}', '{"format": 1, "x": 1}'):
        with pytest.raises(ServerError, match="cannot be read"):
            PushState.from_json(text)
