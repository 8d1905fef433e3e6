"""Indexes with one byte, or many, other than they were written: what is made of them?

python -m tests.torture.index_fuzz MUTATIONS SEED int|str
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np

from crovca import Codes, HashIndex
from crovca.errors import CrovcaError
from crovca.index import view

BITS = 20
QUERIES = np.random.default_rng(3).normal(size=(2, BITS)).astype(np.float32)
EMBEDDINGS = np.random.default_rng(4).normal(size=(2, 24)).astype(np.float32)
LONGEST = 60  # seconds that one index may take


class TooLongError(BaseException):
    """An index was being read for longer than that."""


def ids_of(kind, start, stop):
    return list(range(start, stop)) if kind == "int" else [f"id-{number}é" for number in range(start, stop)]


def make(path, kind):
    """Three segments, two of them with deletions, all with pieces and kept embeddings."""
    rng = np.random.default_rng(3)
    laid_out = patch("crovca.index.segment.worth_laying_out", return_value=True)
    with laid_out, HashIndex.create(path, bits=BITS, keep="int8") as index:
        for start, count in ((0, 700), (1000, 100), (2000, 10)):
            codes = Codes.from_bits(rng.integers(0, 2, (count, BITS)))
            metadata = {"year": list(range(count)), "name": [f"n{number % 13}" for number in range(count)]}
            index.add(ids_of(kind, start, start + count), codes, metadata, rng.normal(size=(count, 24)))
        index.delete(ids_of(kind, 10, 30))
        index.delete(ids_of(kind, 1003, 1007))


@patch.object(view, "_SKETCHES", (40, 40))  # candidates of a query
@patch.object(view, "_JOINED_ROWS", 50)  # of small segments: the larger two are searched piece by piece
def answers(path, kind):
    """Whatever can be asked of an index."""
    with HashIndex.open(path) as index:
        near = index.search(QUERIES, k=20)
        chosen = index.search(QUERIES[:1], k=20, where="year < 90 AND name <> 'n3'")
        some = index.get(ids_of(kind, 5, 9) + ids_of(kind, 1050, 1053))
        stats = index.stats()
        return {
            "described": (len(index), index.bits, index.id_type, index.generation, index.uuid, index.encoder),
            "stats": (stats["metadata"], stats["deleted"]),
            "near": (near.ids.tolist(), near.distances.tolist()),
            "chosen": chosen.to_list(),
            "rescored": index.search(QUERIES, k=5, rescore=2, embeddings=EMBEDDINGS).to_list(),
            "range": index.range_search(QUERIES[:1], 5.0, metric="hamming").to_list(),
            "some": (some.codes.packed.tolist(), some.metadata.to_pydict()),
            "contains": index.contains(ids_of(kind, 0, 40)).tolist(),
            "neighbors": index.neighbors_of(ids_of(kind, 5, 7), 3).ids.tolist(),
            "all": [
                (batch.ids.tolist(), batch.codes.packed.tolist(), batch.metadata.to_pydict())
                for batch in index.batches()
            ],
            "selected": sorted(index.select("year = 5").tolist()),
            "duplicates": sorted(str(group.tolist()) for group in index.duplicates(1).groups),
            "short": index.search(QUERIES, k=5, bits=8).ids.tolist(),
        }


def mutated(rng, content, name):
    """The bytes of a file with a fault, and which."""
    data = bytearray(content)
    kinds = ["flip", "flip", "flip", "byte", "cut", "zero", "append"]
    how = rng.choice([*kinds, "insert", "digit"] if name == "manifest.json" else kinds)
    at = rng.randrange(len(data)) if rng.random() < 0.6 else rng.randrange(min(len(data), 200))
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        data[at] = rng.randrange(256)
    elif how == "cut":
        del data[at:]
    elif how == "zero":
        length = min(len(data) - at, rng.choice([1, 8, 64, 4096]))
        data[at : at + length] = bytes(length)
    elif how == "append":
        data.append(rng.randrange(256))
    elif how == "insert":
        data[at:at] = bytes([rng.randrange(32, 127)])
    else:
        at = rng.choice([place for place, byte in enumerate(data) if 48 <= byte <= 57])
        data[at] = rng.randrange(48, 58)
    return bytes(data), f"{how} at {at}"


ODD: list[object] = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1.5, "", "x", "..", "../../etc", "/etc/passwd", "00000001"),
    *("codes.npy", "deleted-00000009.npy", [], {}, [[]], {"name": "x"}, ["x"], "A" * 64, "0" * 64, "int64", "string"),
]


def garbled(rng, content):
    """A manifest with a value that is something else, and no checksum to tell; and which."""
    manifest = json.loads(content)
    del manifest["sha256"]
    place, key, way = manifest, rng.choice(sorted(manifest)), []
    while True:
        way.append(key)
        inside = place[key]
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.2:
            break
        place, key = inside, rng.choice(sorted(inside) if isinstance(inside, dict) else range(len(inside)))
    if rng.random() < 0.15:
        del place[key]
    else:
        place[key] = rng.choice(ODD)
    return json.dumps(manifest).encode(), f"at {way}"


def _attempt(ask):
    """("ok", answer) or ("error", sentence) or ("traceback", what)."""
    signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "ok", ask()
    except CrovcaError as error:
        return "error", str(error)
    except (Exception, TooLongError) as error:
        return "traceback", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)


def fuzz(mutations, seed, kind):
    """Ask indexes with a fault each.

    Args:
        mutations: how many.
        seed: of the faults.
        kind: "int" or "str", what the ids are.

    Returns:
        How often each outcome came ("unchanged", "error", "named by verify", "believed"), and a line for each that
        must not be.
    """

    def stop(*_):
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    rng, counts, bad = random.Random(seed), Counter(), []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        good, victim = Path(folder, "good"), Path(folder, "bad")
        make(good, kind)
        shutil.copytree(good, victim)
        expected = answers(victim, kind)
        files = [file.relative_to(good) for file in sorted(good.rglob("*")) if file.is_file() and file.name != "lock"]
        while sum(counts.values()) < mutations:
            file = rng.choice(files) if rng.random() > 0.3 else Path("manifest.json")
            content = (good / file).read_bytes()
            forged = file.name == "manifest.json" and rng.random() < 0.4
            changed, how = garbled(rng, content) if forged else mutated(rng, content, file.name)
            if changed == content:
                continue
            (victim / file).write_bytes(changed)
            outcome, said = _attempt(lambda: answers(victim, kind))
            verified, lines = _attempt(lambda: HashIndex.open(victim, skip_damaged=True).verify())
            if outcome == "ok":
                named = verified == "error" or (verified == "ok" and bool(lines))
                outcome = "unchanged" if said == expected else "named by verify" if named else "WRONG"
                if forged and outcome == "WRONG":  # another index, that is: one of another name or generation
                    outcome = "believed"
            if outcome in ("traceback", "WRONG") or verified == "traceback":
                bad.append(
                    f"{file} {how}: {outcome} {said if outcome == 'traceback' else ''}; verify {verified} {lines}"
                )
            counts[outcome] += 1
            (victim / file).write_bytes(content)
    signal.signal(signal.SIGALRM, before)
    return counts, bad


if __name__ == "__main__":
    started = time.perf_counter()
    outcomes, wrong = fuzz(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    print(dict(outcomes), f"{time.perf_counter() - started:.0f} s")
    print("\n".join(wrong))
