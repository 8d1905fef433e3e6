"""Threads and processes that read an index while others write it; every answer is checked.

The code of an item follows from its id and its version, and the version is in its metadata. So an answer is right when
the distance of each id is that of the code which its id and its metadata stand for.

python -m tests.torture.index_stress SECONDS
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from crovca import Codes, HashIndex

BITS = 64
FIXED = [f"fixed {number}" for number in range(1500)]  # never written again
ROOT = Path(__file__).resolve().parents[2]


def codes_of(items):
    """The codes of (id, version) pairs."""
    digests = b"".join(hashlib.sha256(f"{one}:{version}".encode()).digest()[:8] for one, version in items)
    return Codes(np.frombuffer(digests, np.uint8).reshape(-1, 8), BITS)


class Reading:
    """One reader: asks at random, and counts what is right and what is not."""

    def __init__(self, index, seed):
        self.index, self.rng = index, random.Random(seed)
        self.counts = Counter()

    def check(self, what, right):
        self.counts[what if right else f"WRONG {what}"] += 1

    def check_results(self, what, query, found):
        for row in found:
            items = [(hit["id"], hit["metadata"]["version"]) for hit in row]
            distances = codes_of(items).hamming(query)[:, 0].tolist() if items else []
            self.check(what, distances == [hit["distance"] for hit in row] == sorted(distances))

    def ask(self):
        index, rng = self.index, self.rng
        query = Codes(np.frombuffer(rng.randbytes(8), np.uint8)[None], BITS)
        engine = rng.choice(["auto", "auto", "exact", "scan"])
        self.check_results("search", query, index.search(query, 10, metric="hamming", engine=engine).to_list())
        some = rng.sample(FIXED, 3)
        stored = index.get(some)
        right = stored.codes == codes_of([(one, 0) for one in some])
        self.check("get", right and stored.metadata["version"].to_pylist() == [0] * 3)
        self.check("contains", bool(index.contains(some).all()) and some[0] in index and len(index) >= len(FIXED))
        if rng.random() < 0.2:
            odd = index.search(query, 5, metric="hamming", where=f"version % 2 = {rng.randrange(2)}").to_list()
            self.check_results("condition", query, odd)
            self.check("select", index.select(f"id = '{some[0]}'").tolist() == some[:1])
            self.check_results("range", query, index.range_search(query, 20, metric="hamming").to_list())
        if rng.random() < 0.1:
            stored = codes_of([(some[0], 0)])
            self.check_results("neighbors", stored, index.neighbors_of(some[0], 3).to_list())
            view = index.view()
            items = [
                (one, version, code)
                for batch in view.batches(700)
                for one, version, code in zip(
                    batch.ids.tolist(), batch.metadata["version"].to_pylist(), batch.codes.packed, strict=True
                )
            ]
            right = codes_of([item[:2] for item in items]) == Codes(np.array([item[2] for item in items]), BITS)
            self.check("batches", right and len(items) == len(view) == len({item[0] for item in items}))
        if rng.random() < 0.03:
            self.check("verify", index.verify() == [])
            self.check("duplicates", not index.duplicates(0).groups)

    def run(self, stop, refresh=False):
        while not stop():
            try:
                if refresh and self.rng.random() < 0.5:
                    self.index.refresh()
                    self.counts["refresh"] += 1
                self.ask()
            except BaseException:
                self.counts[f"ERROR {traceback.format_exc()[-700:]}"] += 1
        return self.counts


def write(index, name, stop, acknowledged, counts):
    """Change items of one's own, and note what was acknowledged."""
    rng, number = random.Random(name), 0
    while not stop():
        try:
            step = rng.random()
            if step < 0.4 or len(acknowledged) < 20:
                new = {f"{name} {number + one}": 1 for one in range(rng.choice([1, 20, 150]))}
                number += len(new)
                index.add(list(new), codes_of(new.items()), {"version": list(new.values())})
                acknowledged.update(new)
            elif step < 0.65:
                chosen = {one: acknowledged[one] + 1 for one in rng.sample(sorted(acknowledged), 15)}
                index.upsert(list(chosen), codes_of(chosen.items()), {"version": list(chosen.values())})
                acknowledged.update(chosen)
            elif step < 0.9:
                chosen = rng.sample(sorted(acknowledged), min(len(acknowledged) - 1, rng.choice([1, 15, 200])))
                index.delete(chosen)
                for one in chosen:
                    del acknowledged[one]
            else:
                index.compact()
            counts["writes"] += 1
        except BaseException:
            counts[f"ERROR {traceback.format_exc()[-700:]}"] += 1


def fork(index, counts):
    """A child goes on with the index that it inherits, as a reader, and is refused as a writer."""
    child = os.fork()
    if not child:
        try:
            reading = Reading(index, os.getpid())
            for _ in range(3):
                reading.ask()
            try:
                index.add(["child"], codes_of([("child", 0)]), {"version": [0]})
            except Exception as error:
                refused = "forked" in str(error)
            os._exit(0 if refused and not any(key.startswith("WRONG") for key in reading.counts) else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            counts["forks" if status == 0 else f"ERROR a fork ended with {status}"] += 1
            return
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            counts["ERROR a fork hangs"] += 1
            return
        time.sleep(0.02)


def stress(folder, seconds, *, threads=2, processes=2, writers=2):
    """Returns what was counted: any key that begins with WRONG, ERROR or LOST is a fault."""
    path = Path(folder, "index")
    counts = Counter()
    with HashIndex.create(path, BITS) as index:
        index.add(FIXED, codes_of([(one, 0) for one in FIXED]), {"version": [0] * len(FIXED)})
        others = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.torture.index_stress", str(seconds), str(path), str(number)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        end = time.monotonic() + seconds
        stop = lambda: time.monotonic() > end  # noqa: E731
        states = [{} for _ in range(writers)]
        shared = HashIndex.open(path)
        readings = [Reading(index, seed) for seed in range(threads)]
        readings += [Reading(shared, 100 + seed) for seed in range(threads)]
        running = [threading.Thread(target=reading.run, args=(stop, reading.index is shared)) for reading in readings]
        running += [
            threading.Thread(target=write, args=(index, f"w{number}", stop, state, counts))
            for number, state in enumerate(states)
        ]
        for thread in running:
            thread.start()
        while not stop():
            fork(index, counts)
            time.sleep(min(2, seconds / 10))
        for thread in running:
            thread.join()
        shared.close()
    for reading in readings:
        counts.update(reading.counts)
    for process in others:
        out, _ = process.communicate()
        counts.update(eval(out) if process.returncode == 0 else {f"ERROR process: {out[-500:]}": 1})
    expected = {one: version for state in states for one, version in state.items()}
    with HashIndex.open(path) as index:
        items = list(expected.items())
        lost = int((~index.contains([one for one, _ in items])).sum())
        if lost or len(index) != len(items) + len(FIXED):
            counts[f"LOST {lost}; {len(index)} items, expected {len(items) + len(FIXED)}"] += 1
        elif index.get([one for one, _ in items]).codes != codes_of(items):
            counts["WRONG at the end"] += 1
        if index.verify():
            counts[f"WRONG verify {index.verify()}"] += 1
    return counts


def faults(counts):
    """What must not be among what was counted."""
    return {key: value for key, value in counts.items() if key.startswith(("WRONG", "ERROR", "LOST"))}


if __name__ == "__main__":
    if len(sys.argv) > 2:  # a reader beside the others
        until = time.monotonic() + float(sys.argv[1])
        with HashIndex.open(sys.argv[2]) as opened:
            print(dict(Reading(opened, int(sys.argv[3])).run(lambda: time.monotonic() > until, refresh=True)))
    else:
        with tempfile.TemporaryDirectory() as place:
            print(dict(stress(place, float(sys.argv[1]))))
