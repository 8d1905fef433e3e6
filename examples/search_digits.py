"""From embeddings to search results in one page: learn codes of handwritten digits, search them, look at the answer.

python examples/search_digits.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from crovca import Encoded, Hasher, evaluate
from crovca.ids import tie_order
from crovca.index.scoring import BitScorer, top_k

pixels, digits = load_digits(return_X_y=True)
pixels = pixels.astype(np.float32)
database, query = slice(0, 1500), slice(1500, None)

# Learn: no labels, no images, embeddings alone. One model serves 16, 32 and 64 bits.
hasher = Hasher(bits=64, seed=0).fit(pixels[database])

# Encode: 2 bytes an item instead of 256.
codes = hasher.encode(pixels[database], bits=16)
print(codes, f"- {codes.bytes_per_item} bytes an item")

# Search: float logits of the query against the bits of the items; exact, ties in a fixed order.
logits = hasher.logits(pixels[query])[:, :16]
found = top_k(BitScorer.of("asymmetric_hamming", logits, codes), k=5, ties=tie_order(None, len(codes)))
for number in range(3):
    print("query", digits[1500 + number], "-> nearest", digits[found.rows[number]].tolist())

# Measure: the codes beside the floats they come from.
result = evaluate(
    Encoded(hasher.encode(pixels[query]), labels=digits[query], logits=hasher.logits(pixels[query])),
    Encoded(hasher.encode(pixels[database]), labels=digits[database]),
    lengths=(16, 32, 64),
    metrics_=["asymmetric_hamming"],
    query_embeddings=pixels[query],
    database_embeddings=pixels[database],
)
print(f"floats  {result.floats['cosine'].map:.3f} mAP@{result.k}")
for length in result.lengths:
    ranked = length.scores["asymmetric_hamming"]
    assert ranked is not None
    print(f"{length.bits} bits {ranked.map:.3f}")
