"""The hasher that lies in an index's folder: it makes logits of embeddings, and stays while somebody refers to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy.typing as npt

from crovca.errors import FileFormatError, InvalidInputError
from crovca.index.memo import Memo, imported
from crovca.index.scoring import Float32
from crovca.index.segment import Hold, opened_file


class KeptModel:
    """A model's folder, held; it is loaded by the first query that needs it.

    Args:
        folder: of the model.
        fingerprint: that the model must have (``Hasher.fingerprint``); "": not known.
    """

    def __init__(self, folder: Path, fingerprint: str = "") -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._loaded: Memo[str, Any] = Memo(1)
        with opened_file(folder / "config.json") as config:
            self._hold = Hold(config)
            if os.fstat(config).st_nlink == 0:  # removed before it was locked
                raise FileNotFoundError(f"{folder} was removed")

    @classmethod
    def of(cls, folder: Path, fingerprint: str) -> KeptModel | None:
        """The model in a folder, or None where there is none."""
        try:
            return cls(folder, fingerprint)
        except (FileNotFoundError, NotADirectoryError, FileFormatError):
            return None

    def hasher(self) -> Any:
        """The ``Hasher``. Its room lies above this one and loads torch, so it is imported by name, when it is needed.

        Raises:
            FileFormatError: damaged, or not the model that made the codes.
        """
        return self._loaded.get("hasher", self._load)

    def _load(self) -> Any:
        hasher = imported("crovca.hasher").Hasher.load(self.folder)
        if self.fingerprint and hasher.fingerprint != self.fingerprint:
            raise FileFormatError(
                f"{self.folder} is not the model that made the codes of the index ({self.fingerprint[:12]}, this is "
                f"{hasher.fingerprint[:12]}); restore it from a copy, or encode all anew with 'crovca index refit'"
            )
        return hasher

    def logits(self, embeddings: npt.NDArray[Any]) -> Float32:
        """Logits float32 (q, bits) of embeddings (q, d), of the first modality that is so wide.

        Raises:
            InvalidInputError: another shape than the model takes.
        """
        hasher = self.hasher()
        wide = {name: hasher.width(name) for name in hasher.modalities}
        fitting = [name for name, width in wide.items() if embeddings.shape[1:] == (width,)]
        if not fitting:
            takes = " or ".join(f"(q, {width})" for width in dict.fromkeys(wide.values()))
            raise InvalidInputError(f"the index's model takes embeddings {takes}, got {embeddings.shape}")
        found: Float32 = hasher.logits_of_embeddings(embeddings, modality=fitting[0])
        return found
