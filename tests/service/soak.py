"""Clients that ask a running service beside a writer, and know what is right: an item's code follows from its id."""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from crovca import Codes, HashIndex
from tests.started import CONTEXT

BITS = 64
STAYING = 2_000  # items that are never deleted


def code_of(id):
    return hashlib.blake2b(str(id).encode(), digest_size=BITS // 8).digest()


def codes_of(ids):
    return Codes(np.frombuffer(b"".join(map(code_of, ids)), np.uint8).reshape(len(ids), -1), BITS)


def distance(first, second):
    return (int.from_bytes(code_of(first)) ^ int.from_bytes(code_of(second))).bit_count()


def make(path):
    with HashIndex.create(path, bits=BITS) as index:
        index.add(np.arange(STAYING), codes_of(range(STAYING)), {"even": [id % 2 == 0 for id in range(STAYING)]})


@contextmanager
def served(path, *options):
    """A service of its own process: (address, its process)."""
    command = [sys.executable, "-m", "crovca.cli.main", "serve", str(path), "--port", "0", "--rate", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            line = running.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, line + running.stderr.read()
            yield found[0], running
            running.send_signal(signal.SIGTERM)
            running.wait(timeout=500)
        finally:
            running.kill()


def write(path, stop):
    """Adds, replaces and deletes, until it is told to stop."""
    random.seed(0)
    there, following = [], STAYING
    with HashIndex.open(path, writable=True) as index:
        while not stop.is_set():
            new = range(following, following + random.randint(1, 200))
            index.add(np.array(new), codes_of(new), {"even": [id % 2 == 0 for id in new]})
            there += new
            following = new.stop
            random.shuffle(there)
            gone, there = there[: len(there) // 3], there[len(there) // 3 :]
            index.delete(np.array(gone))
            if random.random() < 0.05:
                index.compact()
            time.sleep(0.05)


def ask(address, stop, counts, wrong):
    """One client: by id, with and without a condition, and by logits; every answer is checked."""
    chance = random.Random(threading.get_ident())
    with httpx.Client(base_url=f"{address}/v1", timeout=500) as client:
        (name,) = (one["name"] for one in client.get("/collections").json())
        while not stop.is_set():
            id = chance.randrange(STAYING)
            kind = chance.choice(["id", "where", "logits"])
            query = {"id": id} if kind != "logits" else {"logits": (2.0 * codes_of([id]).unpack()[0] - 1).tolist()}
            asked = {"queries": [[query]], "k": 5, **({"where": "even"} if kind == "where" else {})}
            started = time.perf_counter()
            try:
                answer = client.post(f"/collections/{name}/search", json=asked)
            except httpx.HTTPError as error:
                wrong.append(repr(error))
                continue
            counts["seconds"].append(time.perf_counter() - started)
            counts[answer.status_code] += 1
            if answer.status_code != 200:
                wrong.append(answer.text)
                continue
            hits = answer.json()[0]["hits"]
            if len(hits) != 5 or (kind == "logits" and hits[0]["id"] != id):
                wrong.append((asked, hits))
            for hit in hits:
                right = distance(id, hit["id"]) if kind != "logits" else None
                if right not in (None, hit["distance"]) or hit["metadata"]["even"] != (hit["id"] % 2 == 0):
                    wrong.append((asked, hit))


def generation(address):
    return httpx.get(f"{address}/v1/collections", timeout=500).json()[0]["generation"]


def megabytes(process):
    """What a service and its workers hold."""
    pids = [process.pid, *children(process.pid)]
    return sum(int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in pids) / 1024


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def soak(path, seconds, *options, clients=8, requests=0, generations=0):
    """Run it for so long, and until so many requests are answered beside so many writes.

    What was counted, what was wrong, and megabytes after a fifth of the time and in the end.
    """
    make(path)
    counts, wrong, stop = Counter(), [], threading.Event()
    counts["seconds"] = []
    writer_stops = CONTEXT.Event()
    with served(path, *options) as (address, process):
        writer = CONTEXT.Process(target=write, args=(path, writer_stops))
        writer.start()
        threads = [threading.Thread(target=ask, args=(address, stop, counts, wrong)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 5)
        early = megabytes(process)
        time.sleep(4 * seconds / 5)
        while (counts[200] < requests or generation(address) < generations) and writer.is_alive() and not wrong:
            time.sleep(0.1)
        late = megabytes(process)
        stop.set()
        for thread in threads:
            thread.join()
        writer_stops.set()
        writer.join(timeout=500)
        assert writer.exitcode == 0
        counts["generations"] = generation(address)
    assert process.returncode in (0, -signal.SIGTERM)
    return counts, wrong, early, late


if __name__ == "__main__":  # python -m tests.service.soak FOLDER SECONDS [OPTIONS of crovca serve]
    counts, wrong, early, late = soak(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
    seconds = counts.pop("seconds")
    print(f"{os.cpu_count()} cores, {len(seconds)} requests: {dict(counts)}, wrong: {len(wrong)}")
    median, slowest = 1000 * np.percentile(seconds, [50, 99])
    print(f"ms: median {median:.1f}, p99 {slowest:.1f}; MB {early:.0f}, then {late:.0f}")
