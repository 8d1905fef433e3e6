"""Claims: how often the answers of servers are proven exact on real codes, what they miss where not, and their times.

Codes are of a Hasher with defaults, learned from the set's database part; queries are logits of its query part. First
table: DuckDB, which sorts by a lower bound (six levels), all items as they are. Second table: each engine that is
installed, filled by ``crovca index push`` with 100,000 items of wordnet_nouns that are mixed from neighbors
(benchmarks/scale.py). recall@10 is against the index's own answer, before ``exact=True``; with ``exact=True`` every
answer has to equal it, or the run fails. Times are medians of one query, everything on this machine.

    python benchmarks/servers.py DATA --output docs/results/servers.md   (DATA: folder with wordnet_nouns, caltech100)
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from crovca import Codes, Hasher, HashIndex
from crovca.errors import CrovcaError, ServerError
from crovca.hashing.neighbors import find_neighbors
from crovca.servers.base import Server
from crovca.servers.connection import connect
from crovca.servers.push import push_to

SETS = {"wordnet_nouns": "wordnet_nouns/minilm_{}.npz", "caltech100": "caltech100/mobilenet_v2_{}.npz"}
LENGTHS, METRICS, K = (64, 128, 256), ("asymmetric_hamming", "bce"), 10
MIXED, NOISE = 100_000, 0.5
IN_PROCESS = ("duckdb", "sqlite", "lancedb", "chdb", "qdrant")


def values_of(data: Path, name: str, part: str) -> np.ndarray:
    with np.load(data / SETS[name].format(part)) as file:
        return np.asarray(file["embeddings"], np.float32)


def hasher_of(models: Path, data: Path, name: str, bits: int) -> Hasher:
    """Learned once, then read again."""
    models.mkdir(parents=True, exist_ok=True)
    path = models / f"{name}-{bits}"
    if not path.exists():
        Hasher(bits=bits).fit(values_of(data, name, "database")).save(path)
    return Hasher.load(path)


def mixed_codes(hasher: Hasher, values: np.ndarray) -> Codes:
    random = np.random.default_rng(0)
    near = find_neighbors(values, 10).rows
    one = random.integers(0, len(values), MIXED)
    other = near[one, random.integers(0, near.shape[1], MIXED)]
    share = random.random((MIXED, 1), np.float32)
    logits = hasher.logits(values[one] * share + values[other] * (1 - share))
    return Codes.from_logits(logits + NOISE * random.standard_normal(logits.shape, np.float32))


def asked(server: Server, index: HashIndex, queries: np.ndarray, metric: str) -> str:
    """Share proven, recall of the index's answer, ms of a query, and ms with ``exact=True``, which has to equal it."""
    true = index.search(queries, K, metric=metric)
    fast, slow, proven, hits = [], [], [], []
    server.search(queries[:1], K, metric=metric)
    refused = ""
    for row, ids, distances in zip(queries, true.ids, true.distances, strict=True):
        begun = time.perf_counter()
        found = server.search(row[None], K, metric=metric)
        fast.append(1000 * (time.perf_counter() - begun))
        proven.append(bool(found.proven[0]))
        hits.append(float(np.isin(ids, found.ids[0]).mean()))
        if refused:
            continue
        begun = time.perf_counter()
        try:
            found = server.search(row[None], K, metric=metric, exact=True)
        except ServerError as error:  # Milvus returns 16,384 items at most
            refused = "refused"
            print(f"{type(server).__name__}: {error}", flush=True)
            continue
        slow.append(1000 * (time.perf_counter() - begun))
        if not (np.array_equal(found.ids[0], ids) and np.array_equal(found.distances[0], distances)):
            raise SystemExit(f"{type(server).__name__}: exact=True is not what the index answers")
    exact = refused or f"{np.median(slow):.1f}"
    return f"{np.mean(proven):.3f} | {np.mean(hits):.4f} | {np.median(fast):.1f} | {exact}"


def filled(folder: Path, codes: Codes) -> HashIndex:
    index = HashIndex.create(folder, codes.bits)
    index.add(np.arange(len(codes)), codes)
    return index


def servers(stack: ExitStack, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and address of each that is installed; the others are named."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.servers import launch

    for scheme in IN_PROCESS:
        yield scheme, f"{scheme}://{folder}/{scheme}?table=codes"
    for name in ("postgresql", "milvus"):
        try:
            if name == "milvus":
                yield name, f"{stack.enter_context(launch.milvus())}/codes"
            else:
                yield name, f"{stack.enter_context(launch.postgres(launch.debian_postgres())).url}?table=codes"
        except launch.Missing as reason:
            print(f"{name}: left out: {reason}", flush=True)


def of_duckdb(data: Path, models: Path, queries: int) -> Iterator[str]:
    yield "| set | items | bits | metric | proven | recall@10 | ms | ms, exact |"
    yield "|---|---:|---:|---|---:|---:|---:|---:|"
    for name in SETS:
        values, questions = values_of(data, name, "database"), values_of(data, name, "query")[:queries]
        for bits in LENGTHS:
            hasher = hasher_of(models, data, name, bits)
            with tempfile.TemporaryDirectory() as folder, filled(Path(folder, "index"), hasher.encode(values)) as index:
                push_to(index, url := f"duckdb://{folder}/file?table=codes")
                with connect(url) as server:
                    for metric in METRICS:
                        found = asked(server, index, hasher.logits(questions), metric)
                        yield f"| {name} | {len(index):,} | {bits} | {metric} | {found} |"


def of_all(data: Path, models: Path, queries: int) -> Iterator[str]:
    yield "| server | bits | metric | proven | recall@10 | ms | ms, exact |"
    yield "|---|---:|---|---:|---:|---:|---:|"
    values, questions = (values_of(data, "wordnet_nouns", part) for part in ("database", "query"))
    for bits in LENGTHS[::2]:
        hasher = hasher_of(models, data, "wordnet_nouns", bits)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            index = stack.enter_context(filled(folder / "index", mixed_codes(hasher, values)))
            for name, url in servers(stack, folder):
                try:
                    push_to(index, url)
                    with connect(url) as server:
                        for metric in METRICS:
                            found = asked(server, index, hasher.logits(questions[:queries]), metric)
                            yield f"| {name} | {bits} | {metric} | {found} |"
                except CrovcaError as error:
                    print(f"{name}: left out: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--models", type=Path, default=Path("build/servers"), help="where learned models are kept")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    tables = []
    for task in (of_duckdb, of_all):
        lines = []
        for line in task(arguments.data, arguments.models, arguments.queries):
            print(line, flush=True)
            lines.append(line)
        tables.append("\n".join(lines))
    if arguments.output:
        arguments.output.write_text(
            "# Servers\n\nAnswers of k = 10 with the usual 1,000 candidates (`overfetch`), on "
            f"{arguments.queries} queries; medians on {os.cpu_count()} cores ({platform.machine()}), of which other "
            f"work had some (load at the end: {os.getloadavg()[0]:.0f}), made by\n"
            "`python benchmarks/servers.py DATA --output docs/results/servers.md`. *proven*: the share of answers that "
            "are proven to be exact; *recall@10*:\nof the index's answer, before `exact=True`. With `exact=True` each "
            "answer was checked to be the index's own, ids and distances; refused: for some query Milvus would have to "
            "return more\nthan its 16,384 items.\n\n"
            f"## DuckDB on real codes, all items\n\n{tables[0]}\n\n"
            f"## {MIXED:,} real codes of wordnet_nouns (items mixed from neighbors) on every server\n\n{tables[1]}\n"
        )


if __name__ == "__main__":
    main()
