"""Claims: what a server's candidates recall of the exact asymmetric answer, how often it is proven, how long it takes.

Recall and proofs are the same whatever server returns the candidates, so they are computed here, by numpy: by Hamming
distance (Milvus; PostgreSQL with levels=1) and by PostgreSQL's six levels. Random codes are the worst case; clustered
ones are items around 2,000 centers, as learned codes are. Latencies are of real servers on this machine, started by
tests/servers; what is not installed is left out and named.

    python benchmarks/clusters.py [--items 1000000] [--bits 64] [--queries 20] [--skip-servers] [--hnsw] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from crovca.codes import Codes
from crovca.index.scoring import BitScorer
from crovca.servers.bounds import Levels, Query
from crovca.servers.connection import connect, create
from crovca.servers.postgres import PostgresServer

OVERFETCH = (100, 1000, 10_000)
KS = (10, 100)
CENTERS, NOISE, SCALE = 2000, 0.7, 1.5
BATCH = 65_536


def codes_and_queries(kind: str, items: int, bits: int, queries: int) -> tuple[Codes, np.ndarray]:
    random = np.random.default_rng(0)
    if kind == "random":
        packed = random.integers(0, 256, (items, -(-bits // 8)), dtype=np.uint8)
        codes = Codes.from_bits(np.unpackbits(packed, axis=1, count=bits))
        return codes, (random.normal(size=(queries, bits)) * SCALE).astype(np.float32)
    centers = random.normal(size=(CENTERS, bits)).astype(np.float32)

    def near(count: int) -> np.ndarray:
        noise = random.normal(size=(count, bits)).astype(np.float32)
        found: np.ndarray = centers[random.integers(CENTERS, size=count)] + np.float32(NOISE) * noise
        return found

    parts = [Codes.from_logits(near(min(BATCH, items - start))) for start in range(0, items, BATCH)]
    return Codes.concatenate(parts), near(queries) * np.float32(SCALE)


def sums_of(query: Query, codes: Codes, levels: Levels) -> np.ndarray:
    difference = codes.packed ^ query.code.packed
    total = np.zeros(len(codes), np.int64)
    for mask, step in zip(levels.masks.packed, levels.steps, strict=True):
        total += step * np.bitwise_count(difference & mask).sum(1, dtype=np.int64)
    return total


def recall(codes: Codes, queries: np.ndarray) -> list[dict[str, Any]]:
    """Share of the true top k among the candidates, and of queries whose answer is proven."""
    rows: dict[tuple[str, str, int, int], list[tuple[float, bool]]] = {}
    random = np.random.default_rng(0)
    for logits in queries:
        for metric in ("bce", "asymmetric_hamming"):
            query = Query.of(logits, metric)
            distances = BitScorer.of(metric, logits[None], codes).distances(slice(None))[0]
            places = np.lexsort((random.random(len(codes)), distances))[: max(KS)]
            hamming = sums_of(
                query, codes, Levels(Codes.from_bits(np.ones((1, codes.bits))), np.ones(1, np.int64), 1.0)
            )
            six = query.levels(6)
            for order, sums in (("hamming", hamming), ("six levels", sums_of(query, codes, six))):
                ranked = np.argpartition(sums, max(OVERFETCH))[: max(OVERFETCH)]
                ranked = ranked[np.argsort(sums[ranked], kind="stable")]
                for fetched in OVERFETCH:
                    last = int(sums[ranked[fetched - 1]])
                    bound = query.bound_at(last) if order == "hamming" else query.bound_of(six, last)
                    for k in KS:
                        hits = float(np.isin(places[:k], ranked[:fetched]).mean())
                        proven = bool(np.partition(distances[ranked[:fetched]], k - 1)[k - 1] < bound)
                        rows.setdefault((metric, order, fetched, k), []).append((hits, proven))
    return [
        {
            "metric": metric,
            "order": order,
            "candidates": fetched,
            "k": k,
            "recall": float(np.mean([hit for hit, _ in found])),
            "proven": float(np.mean([proven for _, proven in found])),
        }
        for (metric, order, fetched, k), found in rows.items()
    ]


def milliseconds(call: Callable[[np.ndarray], object], queries: np.ndarray, batch: int = 1) -> float:
    """Median of a query, in batches, after one to warm up."""
    call(queries[:batch])
    taken = []
    for start in range(0, len(queries) - batch + 1, batch):
        begun = time.perf_counter()
        call(queries[start : start + batch])
        taken.append((time.perf_counter() - begun) / batch)
    return float(np.median(taken) * 1000)


def fill(cluster: Any, codes: Codes) -> float:
    begun = time.perf_counter()
    for start in range(0, len(codes), BATCH):
        part = codes[start : start + BATCH]
        cluster.upsert(np.arange(start, start + len(part)), part)
    return time.perf_counter() - begun


def postgres_rows(name: str, url: str, codes: Codes, queries: np.ndarray, hnsw: bool) -> list[dict[str, Any]]:
    address = f"{url}?table=bench"
    with create(address, bits=codes.bits) as cluster:
        seconds = fill(cluster, codes)
        assert isinstance(cluster, PostgresServer)
        cluster._connection.execute("VACUUM ANALYZE bench")
    rows = [{"server": name, "what": "upsert, items a second", "value": len(codes) / seconds}]

    def add(what: str, value: float) -> None:
        rows.append({"server": name, "what": what, "value": value})

    for workers in (0, 2):
        for levels in (1, 6):
            options = f"{url}?options=-c%20max_parallel_workers_per_gather%3D{workers}"
            with PostgresServer.open(options, "bench", levels=levels) as cluster:
                for k in KS:
                    label = f"top {k}, {levels} level{'s' * (levels > 1)}, {1 + workers} processes"
                    proven = cluster.search(queries, k).proven.mean()
                    add(f"{label}: ms", milliseconds(lambda part, k=k: cluster.search(part, k), queries))  # type: ignore[misc]
                    add(f"{label}: proven", float(proven))
                    add(
                        f"{label}, exact=True: ms",
                        milliseconds(lambda part, k=k: cluster.search(part, k, exact=True), queries[:5]),  # type: ignore[misc]
                    )
    if hnsw:
        with PostgresServer.open(url, "bench") as cluster:
            exact = cluster.search(queries, 10, exact=True).ids
            begun = time.perf_counter()
            cluster.build_hnsw()
            add("HNSW build: s", time.perf_counter() - begun)
        with connect(address, approximate=True) as cluster:
            found = cluster.search(queries, 10)
            hits = [len(np.intersect1d(a, b)) / 10 for a, b in zip(found.ids, exact, strict=True)]
            add("HNSW, top 10: recall", float(np.mean(hits)))
            add("HNSW, top 10: ms", milliseconds(lambda part: cluster.search(part, 10), queries))
    return rows


def milvus_rows(url: str, codes: Codes, queries: np.ndarray) -> list[dict[str, Any]]:
    with create(f"{url}/bench", bits=codes.bits) as cluster:
        rows = [{"server": "milvus", "what": "upsert, items a second", "value": len(codes) / fill(cluster, codes)}]
        cluster.count()
        for k in KS:
            for batch in (1, 10):
                value = milliseconds(lambda part, k=k: cluster.search(part, k), queries, batch)  # type: ignore[misc]
                rows.append({"server": "milvus", "what": f"top {k}, batches of {batch}: ms", "value": value})
    return rows


def servers(codes: Codes, queries: np.ndarray, hnsw: bool) -> list[dict[str, Any]]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.servers import launch

    def start_postgres(stack: ExitStack, name: str) -> list[dict[str, Any]]:
        folder = launch.debian_postgres() if name == "postgresql" else launch.pgvector_postgres()
        url = stack.enter_context(launch.postgres(folder)).url
        return postgres_rows(name, url, codes, queries, hnsw and name == "pgvector")

    rows = []
    for name in ("postgresql", "pgvector", "milvus"):
        with ExitStack() as stack:
            try:
                if name == "milvus":
                    rows += milvus_rows(stack.enter_context(launch.milvus()), codes, queries)
                else:
                    rows += start_postgres(stack, name)
            except launch.Missing as reason:
                print(f"{name}: left out: {reason}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--skip-servers", action="store_true")
    parser.add_argument("--hnsw", action="store_true", help="build pgvector's HNSW index too: minutes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"items": arguments.items, "bits": arguments.bits, "queries": arguments.queries}
    for kind in ("random", "clustered"):
        codes, queries = codes_and_queries(kind, arguments.items, arguments.bits, arguments.queries)
        result[kind] = recall(codes, queries)
        print(f"\n{kind} codes      metric             order       candidates    k  recall  proven")
        for row in result[kind]:
            print(
                f"{'':17} {row['metric']:19} {row['order']:11} {row['candidates']:>10,} {row['k']:>4} "
                f"{row['recall']:7.3f} {row['proven']:7.2f}"
            )
        if kind == "random" and not arguments.skip_servers:
            result["servers"] = servers(codes, queries, arguments.hnsw)
            print()
            for row in result["servers"]:
                print(f"{row['server']:12} {row['what']:45} {row['value']:12,.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
