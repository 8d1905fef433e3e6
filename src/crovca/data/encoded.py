"""Codes together with what is known of their items: what ``crovca encode`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.data.labels import check_labels, check_text, check_whole
from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import array_names, load_arrays, save_arrays


@dataclass(frozen=True)
class Encoded:
    """Codes of items.

    Attributes:
        codes: the codes of n items.
        ids: (n,) int64 or str, or None: the row number is the id.
        labels: (n,) int64 or str, (n, C) bool, or None.
        logits: float32 (n, bits) of which the codes are the signs, or None.
        model: ``Hasher.fingerprint`` of the model that made the codes, or None.
    """

    codes: Codes
    ids: npt.NDArray[Any] | None = None
    labels: npt.NDArray[Any] | None = None
    logits: npt.NDArray[np.float32] | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.logits is not None:  # others would be saved, and refused by ``load``
            object.__setattr__(self, "logits", np.asarray(self.logits, np.float32))
        if self.logits is not None and self.logits.shape != (len(self.codes), self.codes.bits):
            raise InvalidInputError(
                f"logits must have shape {(len(self.codes), self.codes.bits)}, got {self.logits.shape}"
            )
        if self.ids is not None and (self.ids.dtype.kind not in "iuU" or self.ids.ndim != 1):
            raise InvalidInputError(
                f"ids must be whole numbers or strings in one dimension, got {self.ids.dtype} {self.ids.shape}"
            )
        if self.ids is not None and self.ids.dtype.kind == "u":
            object.__setattr__(self, "ids", check_whole(self.ids, "ids"))
        for name, values in (("ids", self.ids), ("labels", self.labels)):
            if values is not None and len(values) != len(self.codes):
                raise InvalidInputError(f"there are {len(values)} {name} for {len(self.codes)} codes")

    def __len__(self) -> int:
        return len(self.codes)

    def prefix(self, bits: int) -> Encoded:
        """The same items with the first ``bits`` bits of their codes and logits."""
        logits = None if self.logits is None else self.logits[:, :bits]
        return Encoded(self.codes.prefix(bits), self.ids, self.labels, logits, self.model)

    def save(self, path: str | Path) -> None:
        """Write ``packed``, ``bits`` and what else there is to an ``.npz``, atomically (docs/formats.md)."""
        model = None if self.model is None else np.str_(self.model)
        extra = {"ids": self.ids, "labels": self.labels, "logits": self.logits, "model": model}
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
        unknown = sorted(set(array_names(path)) - {"packed", "bits", "ids", "labels", "logits", "model"})
        if unknown:  # perhaps one of those, whose name was damaged
            raise FileFormatError(f"{path} holds {unknown[0][:80]!r}, which no file of codes has")
        arrays = load_arrays(path, required=("packed", "bits"), optional=("ids", "labels", "logits", "model"))
        codes = Codes.from_arrays(arrays, path)
        ids, labels, logits = (arrays.get(name) for name in ("ids", "labels", "logits"))
        try:
            if ids is not None and ids.dtype.kind == "U":
                ids = check_text(ids, "ids must be whole numbers or strings")
            if logits is not None and (logits.dtype != np.float32 or not np.isfinite(logits).all()):
                raise InvalidInputError(f"logits must be finite numbers of float32, got {logits.dtype}")
            model = arrays.get("model")
            if model is not None and (model.shape != () or model.dtype.kind != "U"):
                raise InvalidInputError(f"'model' must be one text, got {model.dtype} {model.shape}")
            checked = None if labels is None else check_labels(labels, len(codes))
            found = cls(codes, ids, checked, logits, None if model is None else str(model))
            if logits is not None and Codes.from_logits(logits) != codes:
                raise InvalidInputError("the codes are not the signs of the logits beside them; it was changed")
            return found
        except InvalidInputError as error:
            raise FileFormatError(f"{path}: {error}") from error
