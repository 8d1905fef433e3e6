"""Kills writers of an index at any moment, and looks at what they leave. Run by test_durability.py.

Each round a child process does one write, and kills itself with SIGKILL at the n-th file operation, or is killed after
a random time. What is found then must be the state before or the state after that write; after, if the child had said
that it was done.
"""

import os
import random
import signal
import sys
import time

import numpy as np

from crovca import Codes, HashIndex

BITS = 64
WATCHED = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.scandir",
    "os.listdir",
}


def contents(path):
    with HashIndex.open(path) as index:
        assert index.verify() == []
        found = {}
        for batch in index.batches():
            numbers = batch.metadata["n"].to_pylist()
            codes = batch.codes.packed
            found.update(
                {
                    one: (code.tobytes(), n)
                    for one, code, n in zip(batch.ids.tolist(), codes, numbers, strict=True)
                }
            )
        assert len(found) == len(index)
        return found


def plan(rng, state):
    """A write, and the state that it leads to."""
    kind = rng.choice(["add", "add", "upsert", "delete", "compact"])
    after = dict(state)
    count = rng.choice([1, 7, 60])
    if kind == "add":
        ids = rng.sample(range(10**6), count)
        ids = [one for one in ids if one not in state]
    else:
        ids = rng.sample(sorted(state), min(count, len(state)))
    if kind in ("add", "upsert"):
        codes = np.frombuffer(rng.randbytes(8 * len(ids)), np.uint8).reshape(-1, 8)
        numbers = [rng.randrange(1000) for _ in ids]
        after.update({one: (code.tobytes(), n) for one, code, n in zip(ids, codes, numbers, strict=True)})
        return (kind, ids, codes, numbers), after
    if kind == "delete":
        for one in ids:
            del after[one]
        return (kind, ids), after
    return (kind,), after


def write(path, action):
    with HashIndex.open(path, writable=True) as index:
        if action[0] in ("add", "upsert"):
            getattr(index, action[0])(action[1], Codes(action[2], BITS), {"n": action[3]})
        elif action[0] == "delete":
            index.delete(action[1])
        else:
            index.compact()


def child(path, action, done, point):
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in WATCHED and str(arguments[0]).startswith(path):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)

    if point:
        sys.addaudithook(watch)
    write(path, action)
    os.write(done, b"done")
    os._exit(0)


def main(path, rounds, seed):
    rng = random.Random(seed)
    HashIndex.create(path, BITS).close()
    state, killed, undone, last_point = {}, 0, 0, 0
    for number in range(rounds):
        action, after = plan(rng, state)
        reading, writing = os.pipe()
        point = rng.randrange(1, 60) if number % 3 else 0
        pid = os.fork()
        if pid == 0:
            child(path, action, writing, point)
        os.close(writing)
        if not point:
            time.sleep(rng.random() * 0.03)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
        acknowledged = os.read(reading, 10) == b"done"
        os.close(reading)
        killed += not acknowledged
        last_point = max(last_point, point if not acknowledged else 0)
        found = contents(path)
        assert found in (state, after), f"round {number}: {action[0]} killed at {point} left something else"
        assert not acknowledged or found == after, f"round {number}: {action[0]} was lost"
        undone += not acknowledged and found == state and after != state
        state = found
    with HashIndex.open(path, writable=True) as index:
        listed = {segment.name for segment in index.view().segments}
        assert set(os.listdir(os.path.join(path, "segments"))) == listed, "killed writers' leftovers stay"  # noqa: PTH118, PTH208
        index.compact()
    assert contents(path) == state
    print(f"{rounds} rounds, {killed} killed, {undone} undone, {len(state)} items, last point {last_point}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
