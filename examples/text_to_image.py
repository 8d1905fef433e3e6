"""Two modalities: one network for images, one for texts, and codes that they share.

Any two arrays of paired embeddings do: image and text embeddings of one model or of two, of different widths. Here the
pixels of handwritten digits stand for images, and one-hot names with noise for texts.

python examples/text_to_image.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from crovca import Hasher

pixels, digits = load_digits(return_X_y=True)
random = np.random.default_rng(0)
names = np.eye(10, dtype=np.float32)
texts = names[digits] + 0.1 * random.normal(size=(len(digits), 10)).astype(np.float32)

hasher = Hasher.for_pairs(bits=32, seed=0).fit(pixels[:1500].astype(np.float32), texts=texts[:1500])
images = hasher.encode(pixels[1500:].astype(np.float32), modality="images")
words = hasher.encode(names, modality="texts")

nearest = words.hamming(images).argsort(axis=1, kind="stable")[:, :5]
for name, rows in enumerate(nearest):
    print(f"text '{name}' -> images of", digits[1500 + rows].tolist())
