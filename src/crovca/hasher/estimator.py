"""What scikit-learn asks of an estimator, without importing it: that takes a second, for which a search has no use."""

from __future__ import annotations

import inspect
from typing import Any, Self


class Estimator:
    """Parameters are the arguments of ``__init__``, kept under their names."""

    @classmethod
    def param_names(cls) -> list[str]:
        """Names of the parameters."""
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; none of them is an estimator that ``deep`` would ask in turn."""
        return {name: getattr(self, name) for name in self.param_names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name.

        Raises:
            ValueError: there is none of a name.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit: Any) -> Any:
        """``fit``, then ``transform`` of the same."""
        fitted: Any = self
        return fitted.fit(X, y, **fit).transform(X)

    def __repr__(self) -> str:
        defaults = {name: one.default for name, one in inspect.signature(type(self)).parameters.items()}
        changed = (f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name])
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator, TransformerMixin

        tags = type("Transformer", (TransformerMixin, BaseEstimator), {})().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are bits, whatever the embeddings are
        return tags
