"""Kills writers of an index at any moment, and looks at what they leave. Run by test_durability.py.

Each round a child process does one write, and kills itself with SIGKILL at the n-th file operation, or is killed after
a random time. What is found then must be the state before or the state after that write; after, if the child had said
that it was done.

Kept embeddings have the signs of 64 random bits; the code is these bits, flipped where the model (a mask in a file)
says. So codes, embeddings and model must be of one moment.
"""

import json
import os
import random
import signal
import sys
import time

import numpy as np

from crovca import Codes, HashIndex
from crovca.index import index as index_module
from crovca.index import segment as segment_module
from crovca.index.origin import Origin

BITS = 64
WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.scandir", "os.listdir"}


def mask_of(version):
    return np.frombuffer(random.Random(version).randbytes(8), np.uint8)


def floats_of(bits):
    return np.unpackbits(np.ascontiguousarray(bits), axis=1).astype(np.float32) - 0.5


def contents(path):
    """The model's version, and what each item is."""
    with HashIndex.open(path) as index:
        assert index.verify() == []
        view, found = index.view(), {}
        version = int(json.loads((index.model_folder / "config.json").read_text()))
        for batch in view.batches():
            bits = np.packbits(view.originals()[view.find_all(batch.ids)] > 0, axis=1)
            assert (batch.codes.packed == bits ^ mask_of(version)).all(), "codes of another model, or of other items"
            numbers = batch.metadata["n"].to_pylist()
            found.update(
                {one: (item.tobytes(), n) for one, item, n in zip(batch.ids.tolist(), bits, numbers, strict=True)}
            )
        assert len(found) == len(index)
        return version, found


def plan(rng, state):
    """A write, and the state that it leads to."""
    version, items = state
    kind = rng.choice(["add", "add", "add", "upsert", "delete", "merge", "merge", "compact", "refit"])
    after = dict(items)
    count = rng.choice([1, 7, 60])
    if kind == "add":
        ids = rng.sample(range(10**6), count)
        ids = [one for one in ids if one not in items]
    else:
        ids = rng.sample(sorted(items), min(count, len(items)))
    if kind in ("add", "upsert"):
        bits = np.frombuffer(rng.randbytes(8 * len(ids)), np.uint8).reshape(-1, 8)
        numbers = [rng.randrange(1000) for _ in ids]
        after.update({one: (item.tobytes(), n) for one, item, n in zip(ids, bits, numbers, strict=True)})
        return (kind, ids, bits, numbers, version), (version, after)
    if kind == "delete":
        for one in ids:
            del after[one]
        return (kind, ids), (version, after)
    if kind == "refit":
        return (kind, version + 1), (version + 1, after)
    return (kind,), (version, after)


def save_model(version, folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(str(version))


def write(path, action):
    with HashIndex.open(path, writable=True) as index:
        if action[0] in ("add", "upsert"):
            _, ids, bits, numbers, version = action
            codes = Codes(bits ^ mask_of(version), BITS)
            getattr(index, action[0])(ids, codes, {"n": numbers}, floats_of(bits))
        elif action[0] == "delete":
            index.delete(action[1])
        elif action[0] == "refit":
            mask = mask_of(action[1])
            index.recode(
                lambda floats: Codes(np.packbits(floats > 0, axis=1) ^ mask, BITS),
                bits=BITS,
                origin=Origin(f"{action[1]:064x}"),
                save_model=lambda folder: save_model(action[1], folder),
            )
        elif action[0] == "merge":
            while index.merge():
                pass
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
    # Many segments, a few rows merged at a time, and few segments at once: so there are moments inside of merging.
    index_module._MERGE_ROWS, index_module._TIER, index_module._MERGE_BYTES = 8, 3, 2000
    segment_module._MERGED = 25
    rng = random.Random(seed)
    with HashIndex.create(path, BITS, keep="int8") as index:
        save_model(0, index.model_folder)
    state, killed, undone, last_point = (0, {}), 0, 0, 0
    for number in range(rounds):
        action, after = plan(rng, state)
        reading, writing = os.pipe()
        point = rng.randrange(1, 120) if number % 3 else 0
        pid = os.fork()
        if pid == 0:
            child(path, action, writing, point)
        os.close(writing)
        if not point:
            time.sleep(rng.random() * 0.06)
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
        left = [name for name in os.listdir(path) if name.startswith((".", "model"))]  # noqa: PTH208
        assert left == [index.model_folder.name], left
        index.compact()
    assert contents(path) == state
    print(f"{rounds} rounds, {killed} killed, {undone} undone, {len(state[1])} items, last point {last_point}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
