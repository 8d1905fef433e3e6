"""Models as ONNX graphs: from embeddings, or from images, to packed bits.

Packing is part of the graph: most significant bit first, the last byte filled up with zeros, as in ``Codes``.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crovca
from crovca import files
from crovca.encoders.encoder import Encoder
from crovca.errors import EncoderError, MissingDependencyError
from crovca.hasher.hasher import Hasher
from crovca.hashing.network import HashCoder
from crovca.hashing.towers import Tower

MARKER = "export.json"
"""The file that tells a folder of graphs from others."""


def export_onnx(hasher: Hasher, folder: str | Path, *, force: bool = False) -> dict[str, Any]:
    """Write a fitted hasher as ONNX graphs, atomically, with the number of items in a batch left open.

    ``embedding_to_codes.onnx`` takes ``embeddings`` float32 (n, d); ``image_to_codes.onnx`` of a model of images takes
    ``images`` uint8 (n, H, W, 3), resized and cropped (``export.json`` says how), and normalizes them itself. A model
    of two modalities has one graph of embeddings for each. All give ``codes`` uint8 (n, ceil(bits / 8)) and ``logits``
    float32 (n, bits), and compute in float32, whatever the encoder's dtype is here.

    Args:
        hasher: fitted or loaded.
        folder: it must not exist, unless ``force`` replaces it.
        force: replace an earlier export.

    Returns:
        What stands in ``export.json``: the graphs with their inputs, and the preprocessing.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        EncoderError: the encoder cannot be written as a graph.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "onnx", "writing ONNX graphs")
    path = Path(folder)
    files.check_output(path, force=force, marker=MARKER)
    towers = hasher._fitted()
    several = len(towers.coders) > 1
    graphs: dict[str, Any] = {}
    preprocessing = None
    with files.atomic_directory(path) as temporary:
        for tower in towers:
            name = f"{tower.modality.removesuffix('s')}_embedding" if several else "embedding"
            graphs[f"{name}_to_codes.onnx"] = _write(
                _ToCodes(tower.coder),
                "embeddings",
                torch.zeros(2, tower.coder.width),
                temporary / f"{name}_to_codes.onnx",
            )
            if isinstance(tower.encoder, Encoder):
                preprocessing = tower.encoder.preprocessing.to_dict()
                graphs["image_to_codes.onnx"] = _write(
                    _ImageToCodes(tower.encoder, tower),
                    "images",
                    torch.zeros(2, *tower.encoder.preprocessing.size, 3, dtype=torch.uint8),
                    temporary / "image_to_codes.onnx",
                )
        described = {
            "format_version": 1,
            "crovca_version": crovca.__version__,
            "bits": hasher.lengths_[-1],
            "lengths": list(hasher.lengths_),
            "packing": "bit j is 1 where logit j > 0; most significant bit first, filled up with zeros",
            "graphs": graphs,
            "preprocessing": preprocessing,
        }
        files.write_json(temporary / MARKER, described)
    return described


class _ToCodes(nn.Module):
    """Embeddings (n, d) to packed codes uint8 (n, bytes) and logits (n, bits)."""

    weights: Tensor

    def __init__(self, coder: HashCoder) -> None:
        super().__init__()
        self.coder = coder
        bits = torch.arange(coder.bits)
        weights = torch.zeros(-(-coder.bits // 8), coder.bits)
        weights[bits // 8, bits] = 2.0 ** (7 - bits % 8)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.coder(embeddings)
        codes = F.linear((logits > 0).float(), self.weights)  # whole numbers below 256
        return codes.to(torch.uint8), logits


class _ImageToCodes(nn.Module):
    """Images uint8 (n, H, W, 3) to packed codes and logits."""

    def __init__(self, encoder: Encoder, tower: Tower) -> None:
        super().__init__()
        self.model = encoder.model
        self.codes = _ToCodes(tower.coder)
        self._family, self._preprocessing = encoder.family, encoder.preprocessing

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self._preprocessing.normalize(images).contiguous()
        embeddings = self._family.select(self.model(pixel_values=pixels))
        codes: tuple[Tensor, Tensor] = self.codes(embeddings.float())
        return codes


def _write(module: nn.Module, name: str, example: Tensor, path: Path) -> Mapping[str, Any]:
    """Write a graph whose batch may have any size; the network goes on where it was."""
    device = next(module.parameters()).device
    module.eval()
    try:
        with torch.no_grad(), _quiet():
            module.to("cpu")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("items")},),
                input_names=[name],
                output_names=["codes", "logits"],
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.save(str(path))
    except Exception as error:  # torch.export and onnxscript each have their own, by the dozen
        if isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"{path.stem} cannot be written as an ONNX graph: {reason}") from error
    finally:
        module.to(device)
    shape = ["items", *example.shape[1:]]
    return {"input": name, "shape": shape, "dtype": str(example.dtype).removeprefix("torch.")}


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and log lines of the exporter."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
