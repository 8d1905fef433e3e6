"""Claim: adding to a large index costs what adding to a small one does, merging takes memory for some rows and not for
all, and of many codes that are alike a query reads a small share, exactly.

Codes of 64 bits with int64 ids. "Real" ones: items mixed from neighbors in D.npz, encoded by a model learned from it,
each logit moved by normal noise (0.5), so that most are distinct; beyond 10 M codes the noise is drawn several times
for each mixed item. One thread. What is added is merged between the adds (``HashIndex.merge``), by its own clock. CPU
seconds stand beside those of the clock, as others may use the machine; times of a search are CPU milliseconds, medians
(and means, as a few queries read all), beside FAISS's symmetric Hamming scan of the same codes, in turn. Memory is the
process's anonymous memory: what is mapped is not counted.

    python benchmarks/scale.py [--data D.npz] [--items 10000000] [--step 1000000] [--radius 2] [--faiss 1000000]
                               [--small] [--no-search] [--out docs/results/scale]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from crovca import Codes, Hasher, HashIndex, load_embeddings
from crovca.hashing.neighbors import find_neighbors

BITS, NOISE, CHUNK = 64, 0.5, 50_000
QUERIES, ROUNDS = 20, 41
MIXED = 10_000_000  # items at most; of more codes, several are of one item
Logits = Callable[[int], np.ndarray]


def random_logits() -> Logits:
    rng = np.random.default_rng(0)
    return lambda count: 4 * rng.random((count, BITS), np.float32) - 2


def real_logits(data: Path, draws: int) -> Logits:
    values = np.asarray(load_embeddings(data).values[:], np.float32)
    hasher = Hasher(bits=BITS).fit(values)
    near = find_neighbors(values, 10).rows
    rng = np.random.default_rng(0)

    def logits(count: int) -> np.ndarray:
        items = -(-count // draws)
        one = rng.integers(0, len(values), items)
        other = near[one, rng.integers(0, near.shape[1], items)]
        share = rng.random((items, 1), np.float32)
        mixed = np.repeat(hasher.logits(values[one] * share + values[other] * (1 - share)), draws, axis=0)[:count]
        return mixed + NOISE * rng.standard_normal(mixed.shape, np.float32)

    return logits


def made(logits: Logits, count: int) -> Codes:
    parts = [Codes.from_logits(logits(min(CHUNK, count - start))) for start in range(0, count, CHUNK)]
    return Codes.concatenate(parts)


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measured(task: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a task, of the clock and of the CPU; and the most memory (bytes) meanwhile, sampled often."""
    peak, done = [anonymous()], Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    watcher = Thread(target=watch)
    watcher.start()
    started, worked = time.perf_counter(), time.process_time()
    task()
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    done.set()
    watcher.join()
    return {"s": seconds, "cpu_s": cpu, "peak_bytes": peak[0]}


def timed(tasks: dict[str, Callable[[slice], Any]], queries: int) -> tuple[dict[str, float], dict[str, float]]:
    """CPU milliseconds of each task for one query, the tasks in turn: medians and means."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(-1, ROUNDS):
        part = slice(number % queries, number % queries + 1)
        for name, task in tasks.items():
            started = time.process_time()
            task(part)
            if number >= 0:
                taken[name].append(1000 * (time.process_time() - started))
    median, mean = ({name: float(of(one)) for name, one in taken.items()} for of in (np.median, np.mean))
    return median, mean


def searched(index: HashIndex, packed: np.ndarray, queries: np.ndarray) -> list[dict[str, Any]]:
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(packed)
    asked, rows = Codes.from_logits(queries).packed, []
    for metric in ("asymmetric_hamming", "bce", "hamming"):
        for k in (10, 100):
            ask = partial(index.search, k=k, metric=metric)
            tasks: dict[str, Callable[[slice], Any]] = {
                "flat": partial(lambda part, k: flat.search(asked[part], k), k=k),
                "scan": partial(lambda part, ask: ask(queries[part], engine="scan"), ask=ask),
                "auto": partial(lambda part, ask: ask(queries[part]), ask=ask),
            }
            median, mean = timed(tasks, QUERIES)
            rows.append({"metric": metric, "k": k, "ms": median, "mean_ms": mean})
            print(rows[-1], flush=True)
    return rows


def grown(folder: Path, logits: Logits, items: int, step: int, radius: int | None, search: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"adds": [], "merges": []}
    packed = np.lib.format.open_memmap(folder / "all.npy", mode="w+", dtype=np.uint8, shape=(items, BITS // 8))
    with HashIndex.create(folder / "index", BITS) as index:
        for start in range(0, items, step):
            codes = made(logits, step)
            packed[start : start + step] = codes.packed
            result["adds"].append(measured(partial(index.add, np.arange(start, start + step), codes)))
            result["merges"].append(measured(index.merge))
            print(f"{start + step:,}", result["adds"][-1], result["merges"][-1]["s"], flush=True)
        packed.flush()
        some = np.arange(0, items, 10)[: step // 10]
        again = Codes(np.ascontiguousarray(packed[: len(some)]), BITS)
        result["upsert"] = measured(lambda: index.upsert(some, again))
        result["delete"] = measured(lambda: index.delete(some))
        result["segments"] = len(index.view().segments)
        result["compact"] = measured(index.compact)
        index.add(some, again)
        result["compact again"] = measured(index.compact)
        result["writer_bytes"] = index.stats()["memory_bytes"]
        result["disk_bytes"] = sum(index.stats()["disk_bytes"].values())
        print({name: value for name, value in result.items() if name not in ("adds", "merges")}, flush=True)
    if not search:
        return result
    words = np.sort(np.array(Codes(packed, BITS).words()[:, 0]))
    result["distinct"] = (1 + int(np.count_nonzero(words[1:] != words[:-1]))) / items
    del words
    started = time.perf_counter()
    with HashIndex.open(folder / "index") as index:
        result["open"] = {"s": time.perf_counter() - started}
        result["engine"] = measured(index.prepare)
        result["search"] = searched(index, packed, logits(QUERIES))
        result["engines"] = index.engines()
        result["memory_bytes"] = index.stats()["memory_bytes"]
        result["verify"] = measured(index.verify)
        if radius is not None:
            result["duplicates"] = [
                {"radius": one, **measured(partial(index.duplicates, one))} for one in range(radius + 1)
            ]
    print({name: value for name, value in result.items() if name not in ("adds", "merges", "search")}, flush=True)
    return result


def beside_faiss(logits: Logits, items: int, k: int = 10) -> list[dict[str, Any]]:
    """FAISS's binary indexes, and ours, by Hamming distance; recall counts what is as near as the k-th."""
    codes, queries = made(logits, items), logits(100)
    packed, asked, rows = codes.packed, Codes.from_logits(queries).packed, []
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(packed)
    farthest = flat.search(asked, k)[0][:, -1:]

    def row(name: str, built: float, size: int, find: Callable[[np.ndarray], np.ndarray]) -> None:
        recall = float((np.stack([find(asked[one : one + 1])[0] for one in range(len(asked))]) <= farthest).mean())
        median, _ = timed({name: lambda part: find(asked[part])}, len(asked))
        rows.append({"name": name, "build_s": built, "bytes": size, "recall": recall, "ms": median[name]})
        print(rows[-1], flush=True)

    def built(index: Any, train: bool = False) -> tuple[float, int]:
        before, started = anonymous(), time.process_time()
        if train:
            index.train(packed[:100_000])
        index.add(packed)
        return time.process_time() - started, max(0, anonymous() - before)

    def found(index: Any) -> Callable[[np.ndarray], np.ndarray]:
        return lambda one: np.where((found := index.search(one, k))[1] < 0, BITS + 1, found[0])

    row("IndexBinaryFlat", *built(exact := faiss.IndexBinaryFlat(BITS)), found(exact))
    ivf = faiss.IndexBinaryIVF(quantizer := faiss.IndexBinaryFlat(BITS), BITS, 1024)
    ivf.cp.niter = 10
    cost = built(ivf, train=True)
    for ivf.nprobe in (1, 8, 64):
        row(f"IndexBinaryIVF, 1,024 cells, nprobe {ivf.nprobe}", *cost, found(ivf))
    del quantizer
    graph = faiss.IndexBinaryHNSW(BITS, 16)
    cost = built(graph)
    for effort in (16, 64, 256):
        graph.hnsw.efSearch = effort
        row(f"IndexBinaryHNSW, M 16, efSearch {effort}", *cost, found(graph))
    tables = faiss.IndexBinaryMultiHash(BITS, 4, 16)
    cost = built(tables)
    for tables.nflip in (0, 1, 2):
        row(f"IndexBinaryMultiHash, 4 of 16 bits, nflip {tables.nflip}", *cost, found(tables))
    with tempfile.TemporaryDirectory() as folder, HashIndex.create(Path(folder, "index"), BITS) as index:
        index.add(np.arange(items), codes)
        index.compact()
        started = time.process_time()
        index.prepare(metric="hamming")
        cost = time.process_time() - started, index.stats()["memory_bytes"]
        row("crovca, Hamming", *cost, lambda one: index.search(Codes(one, BITS), k, metric="hamming").distances)
    return rows


def small(logits: Logits, folder: Path, rows: int = 300, rounds: int = 300) -> list[dict[str, Any]]:
    """Milliseconds of one query (k = 10) of few rows: in one segment, and in as many segments and one more."""
    codes, queries, results = made(logits, rows + 1), logits(rounds), []
    for segments in (1, rows + 1):
        with HashIndex.create(folder / str(segments), BITS) as index:
            for part in np.array_split(np.arange(rows + 1)[: rows if segments == 1 else None], segments):
                with patch("crovca.index.index._MERGE_ROWS", 0):  # else writes would merge them
                    index.add(part, codes[part])
            count = len(index.view().segments)
            ask = partial(lambda part, index: index.search(queries[part], k=10), index=index)
            median, _ = timed({"auto": ask}, rounds)
        results.append({"rows": rows + (segments > 1), "segments": count, "ms": median["auto"]})
        print(results[-1], flush=True)
    return results


def small_table(result: dict[str, Any]) -> list[str]:
    lines = ["\n## Few rows, and many segments: one query, k = 10\n", "| rows | segments | ms |\n| --- | --- | --- |"]
    return [*lines, *(f"| {one['rows']} | {one['segments']} | {one['ms']:.3f} |" for one in result["small"])]


def table(result: dict[str, Any]) -> list[str]:
    adds, merges = result["adds"], result["merges"]
    tenth = max(1, len(adds) // 10)

    def line(name: str, one: dict[str, float]) -> str:
        cpu = f"{one['cpu_s']:.2f}" if "cpu_s" in one else ""
        return f"| {name} | {one['s']:.3f} | {cpu} | {one.get('peak_bytes', 0) / 1e6:,.0f} |"

    def middle(parts: list[dict[str, float]]) -> dict[str, float]:
        return {name: float(np.median([one[name] for one in parts])) for name in parts[0]}

    total = {name: sum(one[name] for one in merges) for name in ("s", "cpu_s")}
    distinct = f", {100 * result['distinct']:.0f} % distinct" if "distinct" in result else ""
    steps = [name for name in ("upsert", "delete", "compact", "open", "engine", "verify") if name in result]
    lines = [
        f"\n## {result['items']:,} {result['codes']} codes{distinct}\n",
        "| | s | CPU s | most memory, MB |\n| --- | --- | --- | --- |",
        line(f"add {result['step']:,}, median of the first {tenth}", middle(adds[:tenth])),
        line(f"add {result['step']:,}, median of the last {tenth}", middle(adds[-tenth:])),
        line("all merges between", total | {"peak_bytes": max(one["peak_bytes"] for one in merges)}),
        *(line(name, result[name]) for name in steps),
        *(line(f"duplicates, radius {one['radius']}", one) for one in result.get("duplicates", [])),
        f"\nUpsert and delete: {min(result['step'], result['items']) // 10:,} items. "
        f"{result['segments']} segments before compacting.",
    ]
    if "search" not in result:
        return [*lines, f"A writer holds {result['writer_bytes'] / 1e6:,.0f} MB beside the mapped files. Not searched."]
    lines += [
        "\n| one query | k | FAISS Hamming, ms | scan, ms | ratio | mean | chosen, ms | ratio | mean |",
        "| --- " * 9 + "|",
    ]
    for row in result["search"]:
        ms, mean = row["ms"], row["mean_ms"]
        lines.append(
            f"| {row['metric']} | {row['k']} | {ms['flat']:.3f} | {ms['scan']:.3f} | {ms['scan'] / ms['flat']:.2f} "
            f"| {mean['scan']:.3f} | {ms['auto']:.3f} | {ms['auto'] / ms['flat']:.2f} | {mean['auto']:.3f} |"
        )
    chosen = [one for one in result["engines"] if "bce" in one["metrics"]][-1]
    by_metric = "; ".join(
        f"`{one['engine']}` for {', '.join(one['metrics'])}, {one['bytes'] / 1e6:,.0f} MB"
        for one in result["engines"]
        if one["metrics"]
    )
    share = f" `{chosen['engine']}` read {100 * chosen['read']:.1f} % of the codes." if "read" in chosen else ""
    lines.append(
        f"\nChosen: {by_metric}.{share} Beside the mapped files a reader holds {result['memory_bytes'] / 1e6:,.0f} MB, "
        f"a writer {result['writer_bytes'] / 1e6:,.0f} MB."
    )
    return [*lines, *([f"\n{result['note']}"] if "note" in result else [])]


def faiss_table(result: dict[str, Any]) -> list[str]:
    lines = [
        f"\n## Beside FAISS's binary indexes: {result['faiss']:,} {result['codes']} codes, Hamming distance, k = 10\n",
        "| | recall@10 | one query, ms | built in CPU s | memory, MB |\n| --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {one['name']} | {one['recall']:.3f} | {one['ms']:.3f} | {one['build_s']:.1f} | {one['bytes'] / 1e6:,.0f} |"
        for one in result["rows"]
    ]


def billion(result: dict[str, Any]) -> list[str]:
    """What a thousand million codes would take: computed, from what the largest run measured for each item."""
    scale = 1e9 / result["items"]
    scan = max(row["ms"]["scan"] for row in result["search"])
    chosen = max(row["ms"]["auto"] for row in result["search"] if row["metric"] != "hamming")
    merges = sum(one["cpu_s"] for one in result["merges"]) / sum(one["cpu_s"] for one in result["adds"])
    add = float(np.median([one["cpu_s"] for one in result["adds"]])) * 1e9 / result["step"] / 3600
    return [
        f"\n## A billion codes of 64 bits on one machine: computed, not measured\n\nFrom {result['items']:,} "
        f"{result['codes']} codes, times {scale:.0f}:\n",
        f"* on disk {result['disk_bytes'] * scale / 1e9:.0f} GB, and as much again while segments are merged;",
        f"* the scan's memory {8 * 1e9 / 1e9:.0f} GB (8 bytes a code), the writer's filter of ids 2 to 4 GB;",
        f"* one query by the scan on one thread {scan * scale / 1000:.2f} s; from a segment's pieces it took "
        f"{chosen:.1f} ms of {result['items']:,}, and takes no more than {scale:.0f} times that of segments as large;",
        f"* to add all {add:.1f} CPU hours, merging {merges:.1f} times that and a rewriting for each eightfold growth.",
        "\nSo one machine answers by asymmetric Hamming and BCE; for Hamming distance, and to write and verify "
        "as much at once, shards (`ShardedIndex`) on several machines or disks are the better way.",
    ]


def ten_billion(result: dict[str, Any], servers: Path) -> list[str]:
    """What ten thousand million would take on many machines: computed, from one index, and from servers of 1 M."""
    shards, cores = int(1e10 / result["items"]), 64
    mean = max(row["mean_ms"]["auto"] for row in result["search"] if row["metric"] != "hamming")
    lines = [
        "\n## Ten billion on a cluster of shards: computed, not measured\n\nEvery shard is asked at once and returns "
        "its k nearest (16 bytes each), which are merged: the network carries 1.6 KB a shard for k = 100, and a query "
        "takes as long as the slowest shard, and a round trip.\n",
        f"* {shards} indexes of {result['items']:,} ({result['disk_bytes'] / 1e9:.1f} GB each, "
        f"{shards * result['disk_bytes'] / 1e12:.2f} TB in all): {mean:.0f} ms of one core each for a query, at the "
        f"mean; {shards} cores answer {1000 / mean:,.0f} queries a second;",
    ]
    names = {
        "PostgreSQL, asymmetric, proven exact": "a partition of PostgreSQL (`servers.shards`)",
        "Milvus, Hamming": "Milvus",
    }
    for row in json.loads(servers.read_text())["others"]:
        if row["engine"] in names:
            each = row["one_ms"] / 1000  # of 1 M items, which are scanned
            lines.append(
                f"* {names[row['engine']]} scans 1,000,000 items in {each:.2f} s here (docs/results/search.md): "
                f"{10_000 * each:,.0f} s of a core for a query; {cores} machines of {cores} cores would answer in "
                f"{10_000 * each / cores**2:.1f} s if all of them worked at nothing else;"
            )
    return [*lines, "\nFor that many, servers are the place of the metadata, and indexes that of the codes."]


def write(out: Path, result: dict[str, Any]) -> None:
    """Put a result beside the others, in the place of one of the same codes and as many items."""
    file = out.with_suffix(".json")
    others = json.loads(file.read_text()) if file.exists() else []

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["codes"], one["items"], "small" in one

    results = [*(one for one in others if key(one) != key(result)), result]
    file.write_text(json.dumps(results, indent=1) + "\n")
    runs = [one for one in results if one["items"]]
    lines = [line for one in runs for line in table(one)]
    lines += [line for one in results if "small" in one for line in small_table(one)]
    lines += [line for one in results if "faiss" in one for line in faiss_table(one)]
    searches = [one for one in runs if "search" in one]
    if searches:
        real = [one for one in searches if one["codes"] == "real"] or searches
        largest = max(real, key=lambda one: one["items"])
        lines += [*billion(largest), *ten_billion(largest, out.with_name("search.json"))]
    text = "\n".join([f"# Size\n\n{(__doc__ or '').strip()}", *lines])
    out.with_suffix(".md").write_text(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--step", type=int, default=1_000_000)
    parser.add_argument("--radius", type=int, help="find near duplicates as well, up to this radius")
    parser.add_argument("--faiss", type=int, help="compare FAISS's binary indexes of so many codes instead")
    parser.add_argument("--small", action="store_true", help="time a query of few rows, and of many segments, instead")
    parser.add_argument("--no-search", action="store_true", help="write and merge only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where the index is written, and removed again")
    arguments = parser.parse_args()
    kind = "real" if arguments.data else "random"
    items = 0 if arguments.small or arguments.faiss is not None else arguments.items
    logits = real_logits(arguments.data, -(-max(items, 1) // MIXED)) if arguments.data else random_logits()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, threadpool_limits(limits=1):
        if arguments.small:
            result: dict[str, Any] = {"small": small(logits, Path(folder))}
        elif arguments.faiss is not None:
            result = {"rows": beside_faiss(logits, arguments.faiss), "faiss": arguments.faiss}
        else:
            result = grown(Path(folder), logits, items, arguments.step, arguments.radius, not arguments.no_search)
    result |= {"codes": kind, "items": items, "step": arguments.step}
    if arguments.out:
        write(arguments.out, result)


if __name__ == "__main__":
    main()
