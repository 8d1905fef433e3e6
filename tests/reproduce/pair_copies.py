"""Small copies of the benchmarks of image and text, with images that can be decoded and captions of letters."""

import json
from dataclasses import replace

import numpy as np
from scipy.io import savemat

from crovca.datasets import PROTOCOLS
from tests.datasets.copies import touch
from tests.reproduce.copies import paint

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def words(number):
    """A text of letters, another for every number."""
    random = np.random.default_rng(number)
    return "".join(random.choice(LETTERS, 3)) + " " + "".join(random.choice(LETTERS, 3))


def write_ddbh(root, items=30):
    """Tags of one line each; 24 labels, of which the first five occur."""
    random = np.random.default_rng(0)
    names = [f"im{number}.jpg" for number in range(items)]
    touch(root, [f"mirflickr/{name}" for name in names])
    (root / "ddbh").mkdir()
    labels = np.zeros((items, 24), np.int8)
    labels[:, :5] = random.random((items, 5)) < 0.4
    captions = np.empty((items, 1), object)
    captions[:, 0] = [words(number) for number in range(items)]
    savemat(root / "ddbh/index.mat", {"index": [f"mirflickr/{name}" for name in names]})
    savemat(root / "ddbh/caption.mat", {"caption": captions})
    savemat(root / "ddbh/label.mat", {"category": labels})
    counts = {"train": 12, "database": None, "query": 8}
    return replace(PROTOCOLS["flickr25k-ddbh"], counts=counts)


def write_coco_text(root, items=12):
    """Seven captions an image, of which five count."""
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(items)]
    notes = [
        {"id": 10 * image["id"] + row, "image_id": image["id"], "caption": words(100 * image["id"] + row)}
        for image in images
        for row in range(7)
    ]
    touch(root, [f"val2017/{image['file_name']}" for image in images])
    (root / "annotations").mkdir()
    file = root / "annotations/captions_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": notes}))
    return replace(PROTOCOLS["coco-text"], counts={"query": items}, captions={"query": 5 * items})


def write_flickr30k(root, items=9):
    names = [f"{number}.jpg" for number in range(items)]
    touch(root, [f"flickr30k-images/{name}" for name in names])
    rows = [f"{name}#{row}\t{words(7 * int(name[:-4]) + row)}" for name in names for row in range(5)]
    (root / "results_20130124.token").write_text("\n".join(rows) + "\n")
    return replace(PROTOCOLS["flickr30k"], counts={"query": items}, captions={"query": 5 * items})


def write_cc3m(root, items=40):
    for number in range(items):
        shard = f"{number // 25:05d}"
        touch(root, [f"{shard}/{number:09d}.jpg"])
        (root / shard / f"{number:09d}.txt").write_text(words(number))
    return PROTOCOLS["cc3m"]


def write_imagenet1k_text(root):
    """Three classes with six images each."""
    synsets = ["n00000001", "n00000002", "n00000009"]
    touch(root, [f"val/{synset}/ILSVRC2012_val_{number:08d}.JPEG" for synset in synsets for number in range(6)])
    names = zip(synsets, ("tench, Tinca", "crane", "white shark"), strict=True)
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{synset} {name}\n" for synset, name in names))
    counts, sizes = {"database": 18, "query": 3}, {"database": 6, "query": 1}
    return replace(PROTOCOLS["imagenet1k-text"], classes=3, counts=counts, per_class=sizes)


WRITERS = {
    "flickr25k-ddbh": write_ddbh,
    "coco-text": write_coco_text,
    "flickr30k": write_flickr30k,
    "cc3m": write_cc3m,
    "imagenet1k-text": write_imagenet1k_text,
}


def write(data):
    """Write all of them into folders below ``data``; their protocols, by name."""
    found = {}
    for name, writer in WRITERS.items():
        root = data / PROTOCOLS[name].folder
        root.mkdir(parents=True)
        found[name] = writer(root)
        paint(root)
    return found
