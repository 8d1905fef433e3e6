"""Small copies of the benchmarks with images that can be decoded: a data folder, and the protocols that fit it."""

import shutil
from dataclasses import replace

import numpy as np

from tests.datasets import copies as shapes
from tests.datasets.copies import small
from tests.pictures import as_bytes, picture

IMAGES = (".jpg", ".jpeg", ".png")


def paint(root):
    """Give every empty image file a picture of its own."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        if path.suffix.lower() in IMAGES and not path.stat().st_size:
            path.write_bytes(as_bytes(picture(number), "PNG"))


def write_cifar10_images(root):
    """Ten classes, three training images and one query each, as files."""
    from crovca.datasets.cifar10 import CLASSES

    names = [f"train/{name}/{number}.png" for name in CLASSES for number in range(3)]
    shapes.touch(root, [*names, *(f"test/{name}/0.png" for name in CLASSES)])
    return small("cifar10", 30, 30, 10)


def write_cifar10_archive(root):
    """The unpacked binary archive: four training images in each of five batches, and two queries."""
    random = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        rows = 2 if name == "test_batch" else 4
        pixels = random.integers(0, 256, (rows, 3073), dtype=np.uint8)
        pixels[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(pixels.tobytes())
    return small("cifar10", 20, 20, 2)


def write_imagenet1k(root):
    """Four synsets, five training images and ten of validation each."""
    synsets = ["n01440764", "n02391049", "n01537544", "n02488291"]
    shapes.touch(root, [f"train/{s}/{s}_{number}.JPEG" for s in synsets for number in range(5)])
    shapes.touch(root, [f"val/{s}/ILSVRC2012_val_{10 * row + number + 1:08d}.JPEG"
                        for row, s in enumerate(synsets) for number in range(10)])  # fmt: skip
    return small("imagenet1k", 20, 20, 20, classes=4)


def write_flickr25k(root):
    """Twelve images of two labels; one query has none."""
    names = [f"im{row}.jpg" for row in range(1, 13)]
    labels = [[0, 0], [1, 0], *([row % 2, 1] for row in range(10))]
    shapes.touch(root, [f"mirflickr/{name}" for name in names])
    for file, rows in (("test", slice(0, 2)), ("train", slice(2, 6)), ("database", slice(6, 12))):
        (root / f"{file}.txt").write_text(shapes.lines(names[rows], labels[rows]))
    return small("flickr25k", 4, 6, 2, classes=2, unlabeled={"query": 1, "train": None})


WRITERS = {
    "cifar10": write_cifar10_images,
    "flickr25k": write_flickr25k,
    "nuswide21": shapes.write_nuswide21,
    "coco": shapes.write_coco,
    "imagenet100": shapes.write_imagenet100,
    "imagenet1k": write_imagenet1k,
}


def write(data, names=tuple(WRITERS), **others):
    """Write benchmarks into folders below ``data``; their protocols, by name."""
    found = {}
    for name in names:
        folder = data / shapes.PROTOCOLS[name].folder
        found[name] = replace(others.get(name, WRITERS[name])(folder), folder=folder.name)
        paint(folder)
    return found


def with_other_weights(folder, target):
    """A copy of a model, every weight with its sign turned."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, target, dirs_exist_ok=True)
    tensors = load_file(target / "model.safetensors")
    save_file(
        {name: np.asarray(-value) for name, value in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return target
