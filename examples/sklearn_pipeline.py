"""A hasher in a scikit-learn pipeline: its length is chosen by cross-validation, its codes are what neighbors see.

python examples/sklearn_pipeline.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from crovca import Hasher

pixels, digits = load_digits(return_X_y=True)
train, test, known, asked = train_test_split(pixels.astype(np.float32), digits, random_state=0, test_size=300)

pipeline = make_pipeline(StandardScaler(), Hasher(epochs=5, seed=0), KNeighborsClassifier(5, metric="hamming"))
search = GridSearchCV(pipeline, {"hasher__bits": [8, 32]}, cv=2).fit(train, known)
print("accuracy by length:", dict(zip([8, 32], search.cv_results_["mean_test_score"].round(2).tolist(), strict=True)))
print("chosen:", search.best_params_, "accuracy on digits that were left out:", round(search.score(test, asked), 2))
