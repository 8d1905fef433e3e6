"""Small folders in the shape of each benchmark."""

import json
from dataclasses import replace

import numpy as np

from crovca.datasets import PROTOCOLS


def touch(root, paths):
    """Empty files: nothing here decodes an image."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def lines(paths, labels):
    return "".join(f"{path} {' '.join(map(str, row))}\n" for path, row in zip(paths, labels, strict=True))


def small(name, train, database, query, **changes):
    """A benchmark's protocol with the counts of a small copy."""
    counts = {"train": train, "database": database, "query": query}
    return replace(PROTOCOLS[name], counts=counts, checksums={}, per_class={}, **changes)


def write_coco(root):
    """12 images of 4 categories in columns (3, 0, 2, 1): two queries, four to train on."""
    random = np.random.default_rng(0)
    categories = [7, 18, 44, 90]
    labels = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]])
    labels = np.concatenate([labels, random.permuted(labels, axis=0)])
    names = [
        f"{'train' if row % 2 else 'val'}2014/COCO_{'train' if row % 2 else 'val'}2014_{row:012d}.jpg"
        for row in range(12)
    ]
    columns = labels[:, [3, 0, 2, 1]]
    root.mkdir(parents=True)
    touch(root, names)
    (root / "test.txt").write_text(lines(names[:2], columns[:2]))
    (root / "train.txt").write_text(lines(names[2:6], columns[2:6]))
    (root / "database.txt").write_text(lines(names[2:], columns[2:]))
    (root / "annotations").mkdir()
    for part, rows in (("val", range(0, 12, 2)), ("train", range(1, 12, 2))):
        images = [{"id": row, "file_name": names[row].split("/")[1]} for row in rows]
        images.append({"id": 99, "file_name": f"COCO_{part}2014_bare.jpg"})  # without an instance: in no split
        instances = [
            {"image_id": row, "category_id": categories[category], "iscrowd": 0}
            for row in rows
            for category in np.flatnonzero(labels[row]).tolist()
            for _ in range(2)
        ]
        notes = [
            {"id": 100 * row + number, "image_id": row, "caption": f"caption {number} of {row}\n"}
            for row in rows
            for number in (1, 0)
        ]
        for kind, annotations in (("instances", instances), ("captions", notes)):
            content = json.dumps({"images": images, "annotations": annotations})
            (root / "annotations" / f"{kind}_{part}2014.json").write_text(content)
    return small("coco", 4, 10, 2, classes=4)


def write_imagenet100(root):
    """Four synsets, three training images each (one of them in the training set) and one query."""
    synsets = ["n00000001", "n00000005", "n00000007", "n01000000"]
    one_hot = np.eye(4, dtype=int)
    database = [f"image/{synset}_{number}.JPEG" for synset in synsets for number in (3, 11, 2)]
    queries = [f"val_image/ILSVRC2012_val_{number:08d}.JPEG" for number in range(4)]
    root.mkdir(parents=True)
    touch(root, [*database, *queries])
    (root / "database.txt").write_text(lines(database, np.repeat(one_hot, 3, axis=0)))
    (root / "train.txt").write_text(lines(database[::-3], one_hot[::-1]))
    (root / "test.txt").write_text(lines(queries, one_hot))
    return small("imagenet100", 4, 12, 4, classes=4)


def write_nuswide21(root):
    """Six images of three concepts, with the lists of the tarball and the tags."""
    names = [f"images/0{row}_{1000 + row}.jpg" for row in range(6)]
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
    root.mkdir(parents=True)
    touch(root, names)
    (root / "test.txt").write_text(lines(names[:1], labels[:1]))
    (root / "train.txt").write_text(lines(names[1:3], labels[1:3]))
    (root / "database.txt").write_text(lines(names[1:], labels[1:]))
    for part, rows in (("database", [3, 1, 0]), ("test", [2, 4, 5])):
        (root / f"{part}_img.txt").write_text("".join(f"{names[row]}\n" for row in rows))
        (root / f"{part}_label_onehot.txt").write_text("".join(" ".join(map(str, labels[row])) + "\n" for row in rows))
    (root / "All_Tags.txt").write_text("1000      sea  sky \n1001   \n1002 été\n1003 dog\n")
    return small("nuswide21", 2, 5, 1, classes=3)


def write_flickr25k(root):
    """Five images of two labels; one query has none."""
    names = [f"im{row}.jpg" for row in range(1, 6)]
    labels = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 1]])
    root.mkdir(parents=True)
    touch(root, [f"mirflickr/{name}" for name in names])
    (root / "test.txt").write_text(lines(names[:2], labels[:2]))
    (root / "train.txt").write_text(lines(names[2:3], labels[2:3]))
    (root / "database.txt").write_text(lines(names[3:], labels[3:]))
    return small("flickr25k", 1, 2, 2, classes=2, unlabeled={"query": 1, "train": None})
