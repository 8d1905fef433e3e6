"""The facade: hashers with the manners of scikit-learn, of embeddings (``Hasher``, ``CrossModalHasher``) and of images.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
>>> Hasher(bits=16, epochs=2).fit(X).encode(X[:3])
Codes(n=3, bits=16)
"""

from crovca.hasher.embeddings import CrossModalHasher, Hasher
from crovca.hasher.images import ImageHasher, ImageTextHasher
from crovca.hasher.loading import load_hasher

__all__ = ["CrossModalHasher", "Hasher", "ImageHasher", "ImageTextHasher", "load_hasher"]
