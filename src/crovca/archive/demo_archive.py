"""The demo's archive: the handwritten digits as pictures, and an encoder that reads their pixels.

No encoder is at hand offline, so one is made by hand: its one convolution, as large as the picture, gives the 64 pixels
back, and its norm centers them. It knows ink, not meaning; for photographs take a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crovca import files
from crovca.archive.archive import Archive
from crovca.archive.demo import NAMES
from crovca.archive.folder import MARKER
from crovca.hashing.train import Observer

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE, _ZOOM = 8, 12
_SIGN = "digits.txt"


def write_demo_archive(path: Path, *, force: bool = False, observer: Observer | None = None) -> int:
    """Make pictures and encoder in the folder ``<path>-digits``, and their archive at ``path``; how many pictures."""
    digits = check_demo_archive(path, force=force)
    files.remove(path)
    files.remove(digits)
    with files.atomic_directory(digits, new=True) as folder:
        for name, picture in _digits():
            file = folder / "pictures" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
        write_pixel_encoder(folder / "encoder")
        (folder / _SIGN).write_text("Handwritten digits of scikit-learn (UCI, E. Alpaydin and C. Kaynak)\n")
    return Archive.create(digits / "pictures", str(digits / "encoder"), path).sync(observer=observer).items


def check_demo_archive(path: Path, *, force: bool) -> Path:
    """Refuse, as ``write_demo_archive`` does, before anything is done; the folder of pictures and encoder."""
    digits = path.with_name(f"{path.name}-digits")
    files.check_output(path, force=force, marker=MARKER)
    files.check_output(digits, force=force, marker=_SIGN)
    return digits


def write_pixel_encoder(folder: Path) -> None:
    """Write an encoder (a folder as ``transformers`` has them) of 64 numbers: the pixels at 8 x 8, centered."""
    import torch
    from safetensors.torch import save_file
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(patch_size=_SIDE, num_stages=1, hidden_sizes=[_SIDE**2], depths=[0], image_size=_SIDE)
    model = ConvNextModel(config)
    with torch.no_grad():
        convolution = model.embeddings.patch_embeddings
        convolution.bias.zero_()
        # One output a pixel: the mean of its three colors.
        convolution.weight.copy_(torch.eye(_SIDE**2).reshape(_SIDE**2, 1, _SIDE, _SIDE).expand(-1, 3, -1, -1) / 3)
    config.architectures = ["ConvNextModel"]
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})  # its own way draws a bar
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": _SIDE, "width": _SIDE},
        "resample": 4, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    files.write_json(folder / "preprocessor_config.json", processor)


def _digits() -> Iterator[tuple[str, Image]]:
    """Each picture, dark on white, and its path: by the digit that it shows."""
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, shown = load_digits(return_X_y=True)
    for number, (row, digit) in enumerate(zip(pixels, shown, strict=True)):
        gray = (255 - row.reshape(_SIDE, _SIDE) * (255 / 16)).astype(np.uint8)
        picture = Image.fromarray(gray, "L").resize((_SIDE * _ZOOM,) * 2, Image.Resampling.BICUBIC)
        yield f"{NAMES[digit]}/{number:04d}.png", picture
