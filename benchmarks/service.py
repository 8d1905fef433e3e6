"""Claim: 200 queries a second by id over HTTP, each answered in a few milliseconds, of a million items.

    python benchmarks/service.py [--items 1000000] [--clients 1 8] [--workers 1] [--out docs/results/service]

Random codes of 64 bits, served by ``crovca serve``; each client is a process with one connection, and asks for the ten
nearest to an item, one request after the other. The values of a column are counted, and asked for again. Service and
clients share the machine's cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from crovca import Codes, HashIndex

BITS = 64
SECONDS = 10.0


def client(port: int, items: int, seed: int, found: Any) -> None:
    """Milliseconds of each request, put into a queue."""
    chance, times = random.Random(seed), []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        body = json.dumps({"queries": [[{"id": chance.randrange(items)}]], "k": 10})
        started = time.perf_counter()
        connection.request("POST", "/v1/collections/codes/search", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        times.append(1000 * (time.perf_counter() - started))
        if answer.status != 200 or len(json.loads(text)[0]["hits"]) != 10:
            raise SystemExit(f"status {answer.status}: {text[:200]!r}")
    found.put(times)


def measure(port: int, items: int, clients: int) -> dict[str, Any]:
    """Requests a second and milliseconds of several clients at once."""
    found: Any = multiprocessing.Queue()
    running = [multiprocessing.Process(target=client, args=(port, items, seed, found)) for seed in range(clients)]
    for one in running:
        one.start()
    times = np.concatenate([found.get(timeout=10 * SECONDS) for _ in running])
    for one in running:
        one.join()
    row = {"clients": clients, "per_second": len(times) / SECONDS, "median": np.median(times)}
    return {key: round(float(value), 2) for key, value in {**row, "p99": np.percentile(times, 99)}.items()}


def timed(address: str) -> float:
    """Milliseconds of a request."""
    started = time.perf_counter()
    with urllib.request.urlopen(address) as answer:
        answer.read()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        random_codes = np.random.default_rng(0).integers(0, 256, (arguments.items, BITS // 8), np.uint8)
        with HashIndex.create(Path(folder) / "codes", bits=BITS) as index:
            label = np.random.default_rng(0).integers(0, 20, arguments.items).astype(str)
            index.add(np.arange(arguments.items), Codes(random_codes, BITS), {"label": label})
        command = [sys.executable, "-m", "crovca.cli.main", "serve", f"{folder}/codes", "--port", "0", "--rate", "0"]
        service = subprocess.Popen(
            [*command, "--workers", str(arguments.workers)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert service.stdout is not None
        try:
            port = re.search(r":(\d+)", service.stdout.readline().replace("http:", ""))
            assert port is not None
            measure(int(port[1]), arguments.items, 1)  # builds what searching needs
            facets = f"http://127.0.0.1:{port[1]}/v1/collections/codes/facets?column=label"
            counted = [timed(facets) for _ in range(2)]
            rows = [measure(int(port[1]), arguments.items, clients) for clients in arguments.clients]
        finally:
            service.terminate()
            service.wait(timeout=30)
    table = ["| clients | requests a second | ms, median | ms, p99 |", "|---|---|---|---|"]
    table += [f"| {row['clients']:.0f} | {row['per_second']:.0f} | {row['median']} | {row['p99']} |" for row in rows]
    table += ["", f"How many items have each of 20 values of a column: {counted[0]:.0f} ms; again {counted[1]:.0f} ms."]
    print("\n".join(table))
    if arguments.out is not None:
        arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        clients = " ".join(map(str, arguments.clients))
        command_line = (
            f"python benchmarks/service.py --items {arguments.items} --clients {clients} --workers {arguments.workers}"
        )
        text = (
            f"# {arguments.out.name}\n\nMade by\n\n```\n{command_line} --out docs/results/{arguments.out.name}\n```\n\n"
        )
        shared = f"{arguments.workers} process(es) of one thread; service and clients share {os.cpu_count()} cores."
        note = f"{arguments.items:,} items of {BITS} bits; {shared}"
        arguments.out.with_suffix(".md").write_text(f"{text}{note}\n\n" + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
