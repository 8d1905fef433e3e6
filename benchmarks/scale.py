"""Claim: an index grows at an even pace, and of many codes that are alike a query reads a small share, exactly.

Codes of 64 bits with int64 ids. "Real" ones: items mixed from neighbors in D.npz, encoded by a model learned from it,
each logit moved by normal noise (0.5), so that most are distinct. One thread; times of a search are medians (and
means, as a few queries read all), beside FAISS's symmetric Hamming scan of the same codes, in turn. Memory is
anonymous: what is mapped is not counted.

    python benchmarks/scale.py [--data D.npz] [--items 10000000] [--step 1000000] [--out docs/results/scale]
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

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from crovca import Codes, Hasher, HashIndex, load_embeddings
from crovca.hashing.neighbors import find_neighbors

BITS, NOISE, CHUNK = 64, 0.5, 50_000
QUERIES, ROUNDS = 20, 41
Logits = Callable[[int], np.ndarray]


def random_logits() -> Logits:
    rng = np.random.default_rng(0)
    return lambda count: 2 * rng.standard_normal((count, BITS), np.float32)


def real_logits(data: Path) -> Logits:
    values = np.asarray(load_embeddings(data).values[:], np.float32)
    hasher = Hasher(bits=BITS).fit(values)
    near = find_neighbors(values, 10).rows
    rng = np.random.default_rng(0)

    def logits(count: int) -> np.ndarray:
        one = rng.integers(0, len(values), count)
        other = near[one, rng.integers(0, near.shape[1], count)]
        share = rng.random((count, 1), np.float32)
        mixed = hasher.logits(values[one] * share + values[other] * (1 - share))
        return mixed + NOISE * rng.standard_normal(mixed.shape, np.float32)

    return logits


def made(logits: Logits, count: int) -> Codes:
    parts = [Codes.from_logits(logits(min(CHUNK, count - start))) for start in range(0, count, CHUNK)]
    return Codes.concatenate(parts)


def measured(task: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a task, and the most anonymous memory (bytes) meanwhile, sampled fifty times a second."""
    peak, done = [0], Event()

    def watch() -> None:
        while not done.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

    watcher = Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    task()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"s": seconds, "peak_bytes": peak[0]}


def searched(index: HashIndex, codes: Codes, queries: np.ndarray) -> list[dict[str, Any]]:
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(codes.packed)
    packed, rows = Codes.from_logits(queries).packed, []
    for metric in ("asymmetric_hamming", "bce", "hamming"):
        for k in (10, 100):
            ask = partial(index.search, k=k, metric=metric)
            tasks: dict[str, Callable[[slice], Any]] = {
                "flat": partial(lambda part, k: flat.search(packed[part], k), k=k),
                "scan": partial(lambda part, ask: ask(queries[part], engine="scan"), ask=ask),
                "auto": partial(lambda part, ask: ask(queries[part]), ask=ask),
            }
            taken: dict[str, list[float]] = {name: [] for name in tasks}
            for number in range(-1, ROUNDS):
                part = slice(number % QUERIES, number % QUERIES + 1)
                for name, task in tasks.items():
                    started = time.perf_counter()
                    task(part)
                    if number >= 0:
                        taken[name].append(1000 * float(time.perf_counter() - started))
            ms, mean = ({name: float(of(one)) for name, one in taken.items()} for of in (np.median, np.mean))
            rows.append({"metric": metric, "k": k, "ms": ms, "mean_ms": mean})
            print(rows[-1], flush=True)
    return rows


def grown(folder: Path, logits: Logits, items: int, step: int) -> dict[str, Any]:
    result: dict[str, Any] = {"adds": []}
    with HashIndex.create(folder, BITS) as index:
        parts = []
        for start in range(0, items, step):
            parts.append(made(logits, step))
            took = measured(partial(index.add, np.arange(start, start + step), parts[-1]))
            result["adds"].append(took["s"])
            print(f"{start + step:,}: {took['s']:.2f} s", flush=True)
        some = np.arange(0, items, 10)[: step // 10]
        result["upsert"] = measured(lambda: index.upsert(some, parts[0][: len(some)]))
        result["delete"] = measured(lambda: index.delete(some))
        result["segments"] = len(index.view().segments)
        result["compact"] = measured(index.compact)
        index.add(some, parts[0][: len(some)])
        result["compact again"] = measured(index.compact)
    codes = Codes.concatenate(parts)
    words = np.sort(codes.words()[:, 0])
    result["distinct"] = (1 + int(np.count_nonzero(words[1:] != words[:-1]))) / items
    started = time.perf_counter()
    with HashIndex.open(folder) as index:
        result["open"] = {"s": time.perf_counter() - started}
        result["engine"] = measured(index.prepare)
        result["search"] = searched(index, codes, logits(QUERIES))
        result["engines"] = index.engines()
        result["verify"] = measured(index.verify)
    print({name: value for name, value in result.items() if name not in ("adds", "search")}, flush=True)
    return result


def table(results: list[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        adds = result["adds"]
        lines += [
            f"\n## {result['items']:,} {result['codes']} codes, {100 * result['distinct']:.0f} % distinct\n",
            "| | s | most memory, MB |\n| --- | --- | --- |",
            f"| add {result['step']:,}, the first | {adds[0]:.2f} | |",
            f"| add {result['step']:,}, the last | {adds[-1]:.2f} | |",
            *(
                f"| {name} | {result[name]['s']:.3f} | {result[name].get('peak_bytes', 0) / 1e6:,.0f} |"
                for name in ("upsert", "delete", "compact", "open", "engine", "verify")
            ),
            "\n| one query | k | FAISS Hamming, ms | scan, ms | ratio | mean | chosen, ms | ratio | mean |",
            "| --- " * 9 + "|",
        ]
        for row in result["search"]:
            ms, mean = row["ms"], row["mean_ms"]
            lines.append(
                f"| {row['metric']} | {row['k']} | {ms['flat']:.3f} | {ms['scan']:.3f} | {ms['scan'] / ms['flat']:.2f} "
                f"| {mean['scan']:.3f} | {ms['auto']:.3f} | {ms['auto'] / ms['flat']:.2f} | {mean['auto']:.3f} |"
            )
        chosen = next((one for one in result["engines"] if one["engine"] != "scan"), result["engines"][0])
        share = f"; it read {100 * chosen['read']:.1f} % of the codes" if "read" in chosen else ""
        lines.append(f"\nChosen: `{chosen['engine']}`, {chosen['bytes'] / 1e6:,.0f} MB beside the mapped files{share}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--step", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kind, logits = ("real", real_logits(arguments.data)) if arguments.data else ("random", random_logits())
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1):
        result = grown(Path(folder, "index"), logits, arguments.items, arguments.step)
    result |= {"codes": kind, "items": arguments.items, "step": arguments.step}
    if arguments.out:
        file = arguments.out.with_suffix(".json")
        others = json.loads(file.read_text()) if file.exists() else []
        results = [*(one for one in others if (one["codes"], one["items"]) != (kind, arguments.items)), result]
        file.write_text(json.dumps(results, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(f"# Size\n\n{(__doc__ or '').strip()}\n{table(results)}\n")


if __name__ == "__main__":
    main()
