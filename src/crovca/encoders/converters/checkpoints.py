"""What the converters share: reading a checkpoint, renaming its tensors, writing the folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crovca.encoders.encoder import Encoder
from crovca.encoders.preprocessing import IMAGENET
from crovca.errors import ConfigError, FileFormatError, StorageError, one_line
from crovca.files import atomic_directory, write_json


class Tensors:
    """The tensors of a checkpoint of ``what``, each of which must be taken exactly once."""

    def __init__(self, tensors: Mapping[str, Any], what: str) -> None:
        self.what = what
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor, as float32; None in ``shape`` is any length, no shape any shape."""
        found = self._left.pop(name, None)
        if not isinstance(found, Tensor):
            raise FileFormatError(
                f"this is no checkpoint of {self.what}: it has no tensor {name!r}; its first are {self.names[:4]}"
            )
        fits = len(found.shape) == len(shape) and all(
            want in (None, length) for want, length in zip(shape, found.shape, strict=False)
        )
        if shape and not fits:
            wanted = " x ".join("any" if want is None else str(want) for want in shape)
            raise FileFormatError(f"{name!r} is {' x '.join(map(str, found.shape))}, expected {wanted}")
        return found.detach().to(torch.float32)

    def take_block(
        self, width: int, fused: str, attention: Sequence[str], renamed: Mapping[str, str]
    ) -> dict[str, Tensor]:
        """A transformer's block under new names: query, key and value out of ``fused``, other layers old to new."""
        tensors = {}
        for part, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            for name, third in zip(attention, self.take(f"{fused}{part}", *shape).chunk(3), strict=True):
                tensors[f"{name}.{part}"] = third.clone()
            tensors |= {f"{new}.{part}": self.take(f"{old}.{part}") for old, new in renamed.items()}
        return tensors

    def drop(self, *prefixes: str) -> None:
        """Leave out what begins so: heads, buffers."""
        self._left = {name: value for name, value in self._left.items() if not name.startswith(prefixes)}

    @property
    def names(self) -> list[str]:
        """What is left."""
        return list(self._left)

    def finish(self) -> None:
        """Raise FileFormatError where something is left that was not understood."""
        if self._left:
            raise FileFormatError(
                f"{len(self._left)} tensors of this checkpoint of {self.what} are not understood, as "
                f"{self.names[0]!r}; it would not be converted exactly"
            )


@dataclass(frozen=True)
class Converted:
    """A model in the layout of transformers: what its files hold.

    Files of ``copied`` (tokenizer) stand beside them; ``notes`` are for a person.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    copied: Sequence[Path] = ()
    notes: Sequence[str] = field(default=())


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read a PyTorch file (tensors and plain containers only, nothing is unpickled) or a .safetensors file."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged files bring about whatever their bytes happen to say
        if type(error).__name__ == "UnpicklingError":
            raise FileFormatError(
                f"{path} is no PyTorch file, or holds objects other than tensors, which are never unpickled; "
                "save its state dictionary alone"
            ) from error
        raise FileFormatError(f"{path} cannot be read ({one_line(error)}); it may be truncated") from error
    if not isinstance(loaded, Mapping):
        raise FileFormatError(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def processor_config(
    resize: int | None,
    crop: int,
    resample: int = 3,
    *,
    kind: str = "Bit",
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
) -> dict[str, Any]:
    """preprocessor_config.json of images that torchvision prepares, which rounds the crop's offset its own way.

    ``resize`` is the shorter side before the crop; None: both sides become ``crop``, whatever the proportions.
    """
    both = {"height": crop, "width": crop}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": both if resize is None else {"shortest_edge": resize},
        "resample": resample,
        "do_center_crop": resize is not None,
        "crop_size": both,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
        "crovca": {"crop_rounding": "half_even"},
    }


def heads_of(width: int, heads: int | None, *, of: int = 64) -> int:
    """Attention heads: as given, else of 64 channels each. The weights do not tell."""
    found = heads if heads is not None else width // of
    if found < 1 or width % found:
        raise ConfigError(f"{found} attention heads do not divide a width of {width}; say how many with --heads")
    return found


def grid_side(positions: int) -> int:
    """Patches along a side, given the rows of the position embedding (one is for the class token)."""
    side = math.isqrt(positions - 1)
    if side < 1 or side * side != positions - 1:
        raise FileFormatError(f"{positions - 1} patches are not a square; only square images can be converted")
    return side


def write_folder(converted: Converted, output: Path) -> Encoder:
    """Write a model's folder, atomically, once it was loaded from there, on the CPU, and has embedded an image."""
    with atomic_directory(output) as folder:
        write_json(folder / "config.json", dict(converted.config))
        write_json(folder / "preprocessor_config.json", dict(converted.preprocessor))
        tensors = {name: tensor.contiguous() for name, tensor in converted.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for file in converted.copied:
            shutil.copyfile(file, folder / file.name)
        encoder = Encoder.load(folder, device="cpu", dtype="float32")
        encoder.embed(torch.zeros(1, 3, *encoder.preprocessing.size))
    encoder.identity["source"] = str(output)
    return encoder
