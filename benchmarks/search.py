"""Claim: exact asymmetric search takes no longer than FAISS's symmetric Hamming scan, and short codes a tenth of it.

One thread; every time is a median, and those of a row are taken in turn, so that whatever else the machine does
meets all of them. Random codes are the worst case for candidates and ties. "Real" codes come from embeddings: 1 M are
made from those in D.npz by mixing each with one of its neighbors, and encoded by a model learned from D.npz.

    python benchmarks/search.py [--data D.npz] [--items 1000000] [--servers] [--out docs/results/search]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from crovca import Codes, Hasher, HashIndex, load_embeddings
from crovca.hashing.neighbors import find_neighbors

K, BATCH = 100, 100
ROUNDS = {"one": 101, "batch": 5}
LENGTHS = (16, 32, 64, 128, 256)
METRICS = ("asymmetric_hamming", "bce", "hamming")
Row = dict[str, Any]


def in_turn(tasks: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each task; they take turns, and each is called once unmeasured at its turn: what the
    one before it left in the caches is not its business."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task(0)
    for number in range(rounds):
        for name, task in tasks.items():
            task(number)
            started = time.perf_counter()
            task(number + 1)
            taken[name].append(time.perf_counter() - started)
    return {name: 1000 * float(np.median(values)) for name, values in taken.items()}


def random_codes(count: int, bits: int) -> tuple[Codes, np.ndarray]:
    rng = np.random.default_rng(bits)
    packed = rng.integers(0, 256, (count, bits // 8), dtype=np.uint8)
    return Codes(packed, bits), 2 * rng.normal(size=(BATCH, bits)).astype(np.float32)


def real_codes(data: Path, count: int) -> tuple[Codes, np.ndarray]:
    """Codes of 256 bits, to be cut, of items mixed from neighbors; queries are mixed likewise."""
    values = np.asarray(load_embeddings(data).values[:], np.float32)
    hasher = Hasher(bits=256).fit(values)
    near = find_neighbors(values, 10).rows
    rng = np.random.default_rng(0)

    def logits(size: int) -> np.ndarray:
        one = rng.integers(0, len(values), size)
        other = near[one, rng.integers(0, near.shape[1], size)]
        share = rng.random((size, 1), np.float32)
        return hasher.logits(values[one] * share + values[other] * (1 - share))

    parts = [Codes.from_logits(logits(min(50_000, count - start))) for start in range(0, count, 50_000)]
    return Codes.concatenate(parts), logits(BATCH)


def build(folder: Path, codes: Codes) -> HashIndex:
    index = HashIndex.create(folder, codes.bits)
    index.add(np.arange(len(codes)), codes)
    return index


def asking(index: HashIndex, logits: np.ndarray, part: Callable[[int], slice], metric: str) -> Callable[[int], Any]:
    return lambda number: index.search(logits[part(number)], K, metric=metric)


def scan_rows(kind: str, codes: Codes, logits: np.ndarray, folder: Path) -> list[Row]:
    """FAISS's symmetric scan, ours with every metric, and reading the codes once."""
    flat = faiss.IndexBinaryFlat(codes.bits)
    flat.add(codes.packed)
    packed = Codes.from_logits(logits).packed
    words = codes.packed.reshape(-1).view(np.uint64)
    rows = []
    with build(folder / f"{kind}-{codes.bits}-{len(codes)}", codes) as index:
        for size, step in (("one", 1), ("batch", BATCH)):
            few = len(codes) > 5_000_000

            def part(number: int, step: int = step) -> slice:
                return slice(number * step % BATCH, number * step % BATCH + step)

            tasks: dict[str, Callable[[int], Any]] = {
                "flat": lambda number: flat.search(packed[part(number)], K),
                "read": lambda _: words.max(),
            }
            tasks.update({metric: asking(index, logits, part, metric) for metric in METRICS})
            found = in_turn(tasks, (21 if few else ROUNDS[size]) if step == 1 else (3 if few else ROUNDS[size]))
            times = {name: value / (1 if name == "read" else step) for name, value in found.items()}
            row: Row = {"codes": kind, "items": len(codes), "bits": codes.bits, "queries": size, "ms": times}
            row["engine"] = index.engines()[0]["engine"]
            row["ratio"] = {name: times[name] / times["flat"] for name in METRICS}
            rows.append(row)
            print(
                f"{kind:6} {len(codes):>10,} x {codes.bits:3} {size:5} {row['engine']:8} flat {times['flat']:.3f} ms, "
                + ", ".join(f"{name} {times[name]:.3f} ({row['ratio'][name]:.2f})" for name in METRICS)
                + f", reading {times['read']:.3f}",
                flush=True,
            )
    shutil.rmtree(folder / f"{kind}-{codes.bits}-{len(codes)}")
    return rows


def filtered(codes: Codes, logits: np.ndarray, folder: Path) -> Row:
    count = len(codes)
    metadata = {
        "year": np.random.default_rng(0).integers(0, 100, count),
        "name": [f"photo {n}.jpg" for n in range(count)],
    }
    with HashIndex.create(folder / "filtered", codes.bits) as index:
        index.add(np.arange(count), codes, metadata)
        first, sql = [], []
        for year in range(9):
            started = time.perf_counter()
            index.select(f"year = {year}")
            sql.append(time.perf_counter() - started)
            started = time.perf_counter()
            index.search(logits[:1], K, where=f"year = {year}")
            first.append(time.perf_counter() - started)
        found = in_turn(
            {
                "unfiltered": lambda n: index.search(logits[n % BATCH : n % BATCH + 1], K),
                "filtered": lambda n: index.search(logits[n % BATCH : n % BATCH + 1], K, where="year = 7"),
                "unfiltered, batch": lambda _: index.search(logits, K),
                "filtered, batch": lambda _: index.search(logits, K, where="year = 7"),
                "filtered to half, batch": lambda _: index.search(logits, K, where="year < 50"),
            },
            21,
        )
    ms = {name: value / (BATCH if "batch" in name else 1) for name, value in found.items()}
    ms["SQL"], ms["filtered, first time, after the SQL"] = (1000 * float(np.median(times)) for times in (sql, first))
    print("filter to 1 %:", {name: round(value, 3) for name, value in ms.items()}, flush=True)
    return {"items": count, "bits": codes.bits, "selected": 0.01, "ms": ms}


def writing(codes: Codes, folder: Path) -> Row:
    """Two threads, as ``add`` would have them: the one measurement that is not of one thread."""
    count = len(codes)
    metadata = {"year": np.arange(count) % 100, "name": [f"photo {n}.jpg" for n in range(count)]}
    seconds = {}
    for kind, ids in (
        ("int64", np.arange(count)),
        ("string", [f"folder {n % 97}/photo {n}.jpg" for n in range(count)]),
    ):
        with HashIndex.create(folder / f"added-{kind}", codes.bits) as index:
            started = time.perf_counter()
            index.add(ids, codes, metadata)
            seconds[f"add, {kind} ids"] = time.perf_counter() - started
        started = time.perf_counter()
        with HashIndex.open(folder / f"added-{kind}") as index:
            seconds[f"open, {kind} ids"] = time.perf_counter() - started
            started = time.perf_counter()
            index.prepare()
            seconds[f"engine, {kind} ids"] = time.perf_counter() - started
    print("writing, s:", {name: round(value, 4) for name, value in seconds.items()}, flush=True)
    return {"items": count, "bits": codes.bits, "seconds": seconds}


def duplicates(kind: str, codes: Codes, folder: Path) -> list[Row]:
    rows = []
    with build(folder / f"duplicates-{kind}", codes) as index:
        for radius in range(4):
            started = time.perf_counter()
            found = index.duplicates(radius)
            seconds = time.perf_counter() - started
            rows.append(
                {"codes": kind, "items": len(codes), "bits": codes.bits, "radius": radius, "seconds": seconds,
                 "groups": len(found.groups), "links": found.links}
            )  # fmt: skip
            print(f"duplicates {kind} radius {radius}: {seconds:.2f} s, {found.links:,} links", flush=True)
    return rows


def others(kind: str, codes: Codes, logits: np.ndarray, width: int | None) -> list[Row]:
    """Other engines on the same codes: symmetric Hamming, save for the floats."""
    import duckdb
    import pyarrow as pa
    from usearch.compiled import MetricKind
    from usearch.index import Index as GraphIndex
    from usearch.index import search as usearch_search

    packed = Codes.from_logits(logits).packed
    truth, _ = faiss.knn_hamming(packed, codes.packed, K)
    rows: list[Row] = []

    def measure(
        name: str, search: Callable[[np.ndarray], Any], built: float, rounds: int = 3, step: int = BATCH
    ) -> None:
        distances = search(packed[:step])
        one = in_turn({"one": lambda n: search(packed[n % BATCH : n % BATCH + 1])}, rounds * 5)["one"]
        batch = in_turn({"batch": lambda _: search(packed[:step])}, rounds)["batch"] / step
        found = None if distances is None else float((np.sort(distances, 1) <= truth[:step, -1:]).mean())
        rows.append(
            {"engine": name, "codes": kind, "one_ms": one, "batch_ms": batch, "build_s": built, "recall": found}
        )
        print(
            f"{kind:6} {name:28} {one:9.3f} ms, batch {batch:9.3f} ms, built in {built:.1f} s, recall@{K} {found}",
            flush=True,
        )

    flat = faiss.IndexBinaryFlat(codes.bits)
    flat.add(codes.packed)
    measure("FAISS IndexBinaryFlat", lambda q: flat.search(q, K)[0], 0.0, 5)

    started = time.perf_counter()
    cells = 1024
    inverted = faiss.index_binary_factory(codes.bits, f"BIVF{cells}")
    inverted.train(codes.packed[: 64 * cells])
    inverted.add(codes.packed)
    built = time.perf_counter() - started
    for probes in (8, 64):
        inverted.nprobe = probes
        measure(f"FAISS BIVF{cells}, {probes} probed", lambda q: inverted.search(q, K)[0], built)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, HashIndex.create(f"{folder}/index", codes.bits) as index:
        index.add(np.arange(len(codes)), codes)
        index.prepare(engine="inverted")
        built = time.perf_counter() - started
        recall = index.engines()[0]["recall_at_100"]
        measure(
            f"crovca inverted (says {recall:.2f})",
            lambda q: index.search(Codes(q, codes.bits), K, metric="hamming", engine="inverted").distances,
            built,
        )

    measure(
        "USearch exact",
        lambda q: usearch_search(
            codes.packed, q, K, metric=MetricKind.Hamming, exact=True, threads=1
        ).distances.reshape(len(q), -1),
        0.0,
        1,
        10,
    )
    graph = GraphIndex(ndim=codes.bits, metric=MetricKind.Hamming, dtype="b1")
    started = time.perf_counter()
    graph.add(np.arange(len(codes)), codes.packed, threads=2)
    built = time.perf_counter() - started
    measure(
        "USearch HNSW (2 threads to build)",
        lambda q: graph.search(q, K, threads=1).distances.reshape(len(q), -1),
        built,
    )

    if codes.bits == 64:
        connection = duckdb.connect()
        connection.execute("SET threads = 1")
        table = {"id": np.arange(len(codes)), "code": codes.packed.reshape(-1).view(np.uint64)}
        items = pa.table(table)
        started = time.perf_counter()
        connection.execute("CREATE TABLE codes AS SELECT * FROM items")
        built = time.perf_counter() - started

        def ask(queries: np.ndarray) -> np.ndarray:
            answers = [
                connection.execute(
                    "SELECT bit_count(xor(code, ?::UBIGINT)) AS d FROM codes ORDER BY d, id LIMIT 100", [int(word)]
                ).fetchnumpy()["d"]
                for word in queries.reshape(-1).view(np.uint64)
            ]
            return np.stack(answers)

        measure("DuckDB bit_count(xor)", ask, built, 1, 10)
        del items
    if width is not None:
        rng = np.random.default_rng(0)
        floats = faiss.IndexFlatIP(width)
        started = time.perf_counter()
        for _ in range(0, len(codes), 50_000):
            floats.add(rng.standard_normal((min(50_000, len(codes)), width), np.float32))
        built = time.perf_counter() - started
        query = rng.standard_normal((BATCH, width), np.float32)
        count = [0]

        def products(q: np.ndarray) -> None:
            count[0] += 1
            floats.search(query[: len(q)], K)

        measure(f"FAISS IndexFlatIP, {width} floats", products, built, 1, 10)
    return rows


def table(result: dict[str, Any]) -> str:
    lines = [
        "# Searching codes\n",
        f"Made by `{result['command']}`: one thread of {result['processor']}, k = {K}, medians; times in "
        "milliseconds a query, beside FAISS's symmetric Hamming scan (`IndexBinaryFlat`) of the same codes in the same "
        'run. Every answer of ours is exact, ids included. "Reading" is the time to read the codes once, which is what '
        "no scan can go below.\n",
        *markdown(
            ["codes", "items", "bits", "queries", "engine", "FAISS Hamming", "asymmetric", "ratio", "BCE", "ratio",
             "Hamming", "ratio", "reading"],
            [scan_cells(row) for row in result["scan"]],
        ),
        f"\n## With a condition ({result['filtered']['items']:,} items of 64 bits, 1 % selected)\n",
        *markdown(["", "ms a query"], [[name, f"{ms:.3f}"] for name, ms in result["filtered"]["ms"].items()]),
        "\n## Writing and opening (two threads, durable, ids and two columns of metadata)\n",
        *markdown(
            [f"{result['writing']['items']:,} items of 64 bits", "s"],
            [[name, f"{seconds:.4f}"] for name, seconds in result["writing"]["seconds"].items()],
        ),
        "\n## Near duplicates\n",
        *markdown(
            ["codes", "items", "bits", "radius", "s", "pairs of different codes within it"],
            [
                [row["codes"], f"{row['items']:,}", row["bits"], row["radius"], f"{row['seconds']:.2f}",
                 f"{row['links']:,}"]
                for row in result["duplicates"]
            ],
        ),
        f"\n## Others, on the same {result['writing']['items']:,} codes of 64 bits\n",
        "Symmetric Hamming, save for the floats (random numbers of that width). Recall: share of the true 100 smallest "
        "distances that was reached.\n",
        *markdown(
            ["engine", "codes", "one query, ms", "batch, ms a query", "building, s", "recall@100"],
            [
                [row["engine"], row["codes"], f"{row['one_ms']:.3f}", f"{row['batch_ms']:.3f}", f"{row['build_s']:.1f}",
                 "" if row["recall"] is None else f"{row['recall']:.3f}"]
                for row in result["others"]
            ],
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def scan_cells(row: Row) -> list[str]:
    ms, ratio = row["ms"], row["ratio"]
    size = "one" if row["queries"] == "one" else f"batch of {BATCH}"
    cells = [row["codes"], f"{row['items']:,}", row["bits"], size, row["engine"], f"{ms['flat']:.3f}"]
    for name in METRICS:
        cells += [f"{ms[name]:.3f}", f"{ratio[name]:.2f}"]
    return [*cells, f"{ms['read']:.3f}"]


def by_codes(cluster: Any, queries: Codes, number: int) -> Any:
    return cluster.search(queries[number], K, metric="hamming").distances[0]


def by_logits(cluster: Any, logits: np.ndarray, number: int) -> Any:
    return cluster.search(logits[number : number + 1], K, metric="asymmetric_hamming", exact=True).distances[0]


def servers(codes: Codes, logits: np.ndarray) -> list[Row]:
    """Database servers on this machine, through ``servers``; those that are not installed are left out."""
    import sys
    from contextlib import ExitStack

    import clusters

    from crovca.servers.connection import create

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.servers import launch

    queries = Codes.from_logits(logits)
    truth, _ = faiss.knn_hamming(queries.packed, codes.packed, K)
    rows: list[Row] = []

    def timed(name: str, built: float, search: Callable[[int], Any]) -> None:
        one = in_turn({"one": search}, 7)["one"]
        found = np.asarray(search(0), np.float64)
        recall = float((np.sort(found) <= truth[0, -1]).mean()) if "Hamming" in name or "bit" in name else 1.0
        rows.append(
            {"engine": name, "codes": "random", "one_ms": one, "batch_ms": one, "build_s": built, "recall": recall}
        )
        print(f"{name:44} {one:9.3f} ms, filled in {built:.1f} s, recall@{K} {recall}", flush=True)

    for name in ("PostgreSQL", "pgvector", "Milvus"):
        with ExitStack() as stack:
            try:
                if name == "Milvus":
                    url = f"{stack.enter_context(launch.milvus())}/bench"
                else:
                    folder = launch.debian_postgres() if name == "PostgreSQL" else launch.pgvector_postgres()
                    url = f"{stack.enter_context(launch.postgres(folder)).url}?table=bench"
            except launch.Missing as reason:
                print(f"{name}: left out: {reason}")
                continue
            cluster: Any = stack.enter_context(create(url, bits=codes.bits))
            built = clusters.fill(cluster, codes)
            if name == "pgvector":
                connection = cluster._connection
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
                connection.execute("SET max_parallel_workers_per_gather = 0")

                def ask(n: int, connection: Any = connection) -> list[float]:
                    bits = "".join(map(str, queries[n].unpack()[0]))
                    text = f"SELECT code OPERATOR(public.<~>) B'{bits}' AS d FROM bench ORDER BY d LIMIT {K}"
                    return [row[0] for row in connection.execute(text).fetchall()]

                timed("pgvector, bit <~> bit, one process", built, ask)
                continue
            if name == "PostgreSQL":
                cluster._connection.execute("VACUUM ANALYZE bench")
                cluster._connection.execute("SET max_parallel_workers_per_gather = 0")
            timed(f"{name}, Hamming", built, partial(by_codes, cluster, queries))
            if name == "PostgreSQL":
                timed(f"{name}, asymmetric, proven exact", built, partial(by_logits, cluster, logits))
    return rows


def markdown(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def processor() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0]} ({len(names)} cores)" if names else "an unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="embeddings, for real codes")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--many", type=int, default=10_000_000, help="items of the large set of 16 bits")
    parser.add_argument("--width", type=int, default=1280, help="of the floats that are compared; 0: none")
    parser.add_argument("--servers", action="store_true", help="PostgreSQL, pgvector and Milvus too (tests/servers)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    arguments = parser.parse_args()
    shown = (
        "python benchmarks/search.py" + (" --data D.npz" if arguments.data else "") + " --servers" * arguments.servers
    )
    if arguments.out:
        shown += f" --out {arguments.out}"
    result: dict[str, Any] = {
        "command": shown,
        "k": K,
        "processor": processor(),
        "faiss": faiss.__version__,
        "scan": [],
    }
    real = real_codes(arguments.data, arguments.items) if arguments.data else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["writing"] = writing(random_codes(arguments.items, 64)[0], folder)
        faiss.omp_set_num_threads(1)
        with threadpool_limits(limits=1):
            for bits in LENGTHS:
                result["scan"] += scan_rows("random", *random_codes(arguments.items, bits), folder)
                if real is not None:
                    result["scan"] += scan_rows("real", real[0].prefix(bits), real[1][:, :bits], folder)
            result["scan"] += scan_rows("random", *random_codes(arguments.many, 16), folder)
            result["filtered"] = filtered(*random_codes(arguments.items, 64), folder)
            codes, logits = random_codes(arguments.items, 64)
            result["duplicates"] = duplicates("random", codes, folder)
            if real is not None:
                result["duplicates"] += duplicates("real", real[0].prefix(64), folder)
                result["others"] = others("real", real[0].prefix(64), np.ascontiguousarray(real[1][:, :64]), None)
            else:
                result["others"] = []
            result["others"] += others("random", codes, logits, arguments.width or None)
    if arguments.servers:
        result["others"] += servers(*random_codes(arguments.items, 64))
    if arguments.out:
        arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
