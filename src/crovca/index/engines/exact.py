"""The oracle: every code scored in float64, in blocks. Slow, always right, any length."""

from __future__ import annotations

from typing import ClassVar

from crovca.codes import Codes
from crovca.index.engines.base import Found, Mask, exhaustive
from crovca.index.scoring import BitScorer


class ExactEngine:
    """See ``base.Engine``. Holds nothing but the codes."""

    name: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True
    nbytes = 0

    def __init__(self, codes: Codes) -> None:
        self.codes = codes

    def nearest(self, scorer: BitScorer, k: int, allowed: Mask | None = None) -> list[Found]:
        """See ``base.Engine``."""
        return list(exhaustive(scorer, k, allowed))
