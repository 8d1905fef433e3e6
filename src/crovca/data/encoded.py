"""Codes together with what is known of their items: what ``crovca encode`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.data.labels import check_labels
from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import load_arrays, save_arrays
from crovca.ids import as_ids

__all__ = ["Encoded"]


@dataclass(frozen=True)
class Encoded:
    """Codes of items.

    Attributes:
        codes: the codes of n items.
        ids: (n,) int64 or str, or None: the row number is the id.
        labels: (n,) int64 or str, (n, C) bool, or None.
        logits: float32 (n, bits) of which the codes are the signs, or None.
    """

    codes: Codes
    ids: npt.NDArray[Any] | None = None
    labels: npt.NDArray[Any] | None = None
    logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.logits is not None and self.logits.shape != (len(self.codes), self.codes.bits):
            raise InvalidInputError(
                f"logits must have shape {(len(self.codes), self.codes.bits)}, got {self.logits.shape}"
            )
        if self.ids is not None:
            as_ids(self.ids, longest=None)  # raises for what cannot be ids
        for name, values in (("ids", self.ids), ("labels", self.labels)):
            if values is not None and len(values) != len(self.codes):
                raise InvalidInputError(f"there are {len(values)} {name} for {len(self.codes)} codes")

    def __len__(self) -> int:
        return len(self.codes)

    def prefix(self, bits: int) -> Encoded:
        """The same items with the first ``bits`` bits of their codes and logits."""
        logits = None if self.logits is None else self.logits[:, :bits]
        return Encoded(self.codes.prefix(bits), self.ids, self.labels, logits)

    def save(self, path: str | Path) -> None:
        """Write ``packed``, ``bits`` and what else there is to an ``.npz``, atomically (docs/formats.md)."""
        extra = {"ids": self.ids, "labels": self.labels, "logits": self.logits}
        save_arrays(
            Path(path),
            packed=self.codes.packed,
            bits=np.int64(self.codes.bits),
            **{name: values for name, values in extra.items() if values is not None},
        )

    @classmethod
    def load(cls, path: str | Path) -> Encoded:
        """Read what ``save`` wrote; a file of ``Codes.save`` has no ids, labels or logits."""
        path = Path(path)
        arrays = load_arrays(path, required=("packed", "bits"))
        codes = Codes.from_arrays(arrays, path)
        try:
            labels = arrays.get("labels")
            return cls(
                codes,
                arrays.get("ids"),
                None if labels is None else check_labels(labels, len(codes)),
                arrays.get("logits"),
            )
        except InvalidInputError as error:
            raise FileFormatError(f"{path}: {error}") from error
