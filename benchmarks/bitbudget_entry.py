"""crovca's methods in BitBudget, the benchmark of retrieval quality for each byte stored (PyPI ``bitbudget`` 0.3.1).

Registers a method for each of crovca's unsupervised methods and lengths (``@bitbudget.method``: float embeddings of
documents and queries in, scores and bytes a vector out) and scores them beside BitBudget's own: nDCG@10 against graded
judgements, recall@10 against the floats. ``FILE.npz`` is what ``bitbudget embed`` writes for a BEIR corpus (``demb``,
``qemb``, ``cids``, ``qids``, ``qrels``); or, with ``--database`` and ``--query``, any two files of labeled embeddings,
where an item of the query's class has the grade 1.

    pip install bitbudget
    python benchmarks/bitbudget_entry.py FILE.npz [--bits 64,128,256] [--methods crovca,itq,ash_2] [--json OUT.json]
    python benchmarks/bitbudget_entry.py --database D.npz --query Q.npz [--queries 300]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from crovca import load_embeddings
from crovca.baselines.base import ScoreBaseline
from crovca.codes import Codes
from crovca.compare.methods import METHODS, Method
from crovca.index.scoring import BitScorer
from crovca.metrics import REPORTED

Scores = tuple[np.ndarray[Any, np.dtype[np.float32]], float]


def plug_in(method: Method, bits: int, documents: Any, queries: Any) -> Scores:
    """Learn from the documents alone; similarities (q, n) and the bytes of a stored vector."""
    documents, queries = (np.asarray(side, np.float32) for side in (documents, queries))
    if method.ours is not None:
        model: Any = method.ours([bits], 0)
    else:
        assert method.baseline is not None
        model = method.baseline(bits, seed=0)
    model.fit(documents)
    if isinstance(model, ScoreBaseline):
        return model.scores(queries, documents), float(model.bytes_per_item)
    codes = Codes.from_logits(np.ascontiguousarray(model.logits(documents)[:, :bits]))
    logits = np.ascontiguousarray(model.logits(queries)[:, :bits])
    distances = BitScorer.of(REPORTED, logits, codes).distances(slice(None))
    return -distances, float(codes.bytes_per_item)


def register(decorate: Callable[..., Any], names: list[str], lengths: list[int], width: int) -> list[str]:
    """Register methods with ``bitbudget.method``; a size of its own is registered once."""
    registered = []
    for method in METHODS:
        if method.name not in names:
            continue
        if method.supervised:
            raise SystemExit(f"{method.name} learns from labels, which BitBudget does not give")
        sizes = {"asked": lengths, "width": [width], "float": [32 * width]}[method.size]
        for bits in sizes:
            name = f"crovca/{method.name}/{bits}"
            decorate(name, bits=None, axis="quantisation")(partial(plug_in, method, bits))
            registered.append(name)
    unknown = set(names) - {method.name for method in METHODS}
    if unknown:
        raise SystemExit(f"unknown methods {sorted(unknown)}; known: {[method.name for method in METHODS]}")
    return registered


def load(arguments: argparse.Namespace) -> tuple[Any, Any, list[str], list[str], dict[str, dict[str, int]]]:
    """Document and query embeddings, their ids, and the judgements."""
    if arguments.file is not None:
        with np.load(arguments.file) as found:
            return (
                found["demb"],
                found["qemb"],
                found["cids"].tolist(),
                found["qids"].tolist(),
                json.loads(str(found["qrels"])),
            )
    database, query = (load_embeddings(path) for path in (arguments.database, arguments.query))
    if database.labels is None or query.labels is None:
        raise SystemExit("embeddings without labels: give files with labels, or what 'bitbudget embed' wrote")
    rows = np.unique(np.linspace(0, len(query) - 1, min(arguments.queries, len(query))).astype(int))
    unit = [np.asarray(side, np.float32) for side in (database.values[:], query.values[rows])]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in unit]
    judged = {
        f"q{row}": {str(item): 1 for item in np.flatnonzero(database.labels == query.labels[row]).tolist()}
        for row in rows.tolist()
    }
    return (unit[0], unit[1], [str(item) for item in range(len(database))], list(judged), judged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--database", type=Path)
    parser.add_argument("--query", type=Path)
    parser.add_argument("--queries", type=int, default=300, help="of --query, evenly spaced")
    parser.add_argument("--bits", default="64,128,256")
    parser.add_argument("--methods", default="crovca,itq,hashing_baseline,ash_1,ash_2,turboquant_2,pq")
    parser.add_argument("--theirs", default="float32,int8,binary,binary-mean,rabitq,pca")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (arguments.file is None) == (arguments.database is None or arguments.query is None):
        parser.error("give FILE.npz, or --database and --query")
    bitbudget = import_module("bitbudget")
    demb, qemb, cids, qids, qrels = load(arguments)
    ours = register(
        bitbudget.method, arguments.methods.split(","), [int(b) for b in arguments.bits.split(",")], demb.shape[1]
    )
    rows = bitbudget.evaluate(demb, qemb, cids, qids, qrels, methods=[*arguments.theirs.split(","), *ours])
    print(
        f"BitBudget {bitbudget.__version__}; {len(demb):,} documents, {demb.shape[1]} numbers, {len(qemb):,} queries\n"
    )
    print("| method | bytes | nDCG@10 | % of float | recall@10 |\n|---|---|---|---|---|")
    for row in rows:
        quality = f"{row['ndcg']:.3f} | {row['pct_float']:.0f} | {row['recall']:.3f}"
        print(f"| {row['method']} | {row['bytes']:,.0f} | {quality} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
