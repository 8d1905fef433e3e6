"""The facade: one estimator with the manners of scikit-learn, for embeddings, images and pairs.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
>>> Hasher(bits=16, epochs=2).fit(X).encode(X[:3])
Codes(n=3, bits=16)
"""

from crovca.hasher.fine_tuning import FineTuning
from crovca.hasher.hasher import Hasher

__all__ = ["FineTuning", "Hasher"]
