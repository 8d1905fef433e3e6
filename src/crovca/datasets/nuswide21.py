"""NUS-WIDE with its 21 most frequent concepts."""

from __future__ import annotations

from pathlib import PurePosixPath

from crovca.datasets.splits import open_split_files, read_split
from crovca.datasets.structure import FILES, Captions, Dataset, Fetched, Protocol, Split, split_files
from crovca.datasets.tree import Tree
from crovca.errors import FileFormatError

_TARBALL = "https://github.com/TreezzZ/DSDH_PyTorch (NUS-WIDE.tar.gz)"

PROTOCOL = Protocol(
    name="nuswide21",
    title="NUS-WIDE-21",
    folder="nuswide21",
    task="image to image",
    counts={"train": 10_500, "database": 193_734, "query": 2_100},
    metric="mAP@5000",
    k=5000,
    relevance="share a label",
    classes=21,
    multi_label=True,
    train_in_database=True,
    sources=(
        *split_files("nuswide_21"),
        Fetched("images/", _TARBALL),
        *(
            Fetched(f"{part}_{kind}.txt", f"{_TARBALL} (for --rebuild)", needed=False)
            for part in ("database", "test")
            for kind in ("img", "label_onehot")
        ),
        Fetched("All_Tags.txt", "https://lms.comp.nus.edu.sg (NUS_WID_Tags.zip): the users' tags", needed=False),
    ),
    license="images are their owners' on Flickr; labels for non-commercial research",
    notes=(
        "the paper's Table 9 says 2,000 queries; the split file that its authors use has 2,100",
        "database.txt must be fetched; or it is rebuilt from the lists in the tarball (database_img.txt, "
        "database_label_onehot.txt, test_img.txt, test_label_onehot.txt): --rebuild",
        "nuswide_21_m is another set (223,496 images), and its numbers do not compare",
        "a random order scores about 44 %",
    ),
)

_TAGS = ("All_Tags.txt", "NUS_WID_Tags/All_Tags.txt")
_ADVICE = ", or rebuild it: crovca datasets nuswide21 --folder DIR --rebuild"


def open_nuswide21(tree: Tree) -> Dataset:
    """Read the split files; the users' tags become an image's text where All_Tags.txt is there."""
    splits, names = open_split_files(tree, advice=_ADVICE)
    tags = tree.first(_TAGS)
    if tags is not None:
        texts = _read_tags(tree, tags)
        for name, split in splits.items():
            rows = [[texts.get(PurePosixPath(path).stem.rpartition("_")[2], "")] for path in names[name]]
            splits[name] = Split(split.paths, split.labels, Captions.gather(rows))
    return tree.dataset(splits)


def database_of_nuswide21(tree: Tree) -> list[str]:
    """Lines of database.txt: the images of the 21 concepts, as the tarball lists them, without the queries."""
    tree.require([f"{part}_{kind}.txt" for part in ("database", "test") for kind in ("img", "label_onehot")])
    known: dict[str, str] = {}
    for part in ("database", "test"):
        images = tree.text(f"{part}_img.txt").split("\n")
        labels = tree.text(f"{part}_label_onehot.txt").split("\n")
        if len(images) != len(labels):
            raise FileFormatError(
                f"{tree.protocol.name}: {part}_img.txt has {len(images):,} lines, "
                f"{part}_label_onehot.txt {len(labels):,}"
            )
        pairs = zip(images, labels, strict=True)
        known |= {path.strip(): " ".join(label.split()) for path, label in pairs if path.strip()}
    queries: set[str] = set()
    for split in ("train", "query"):
        paths, hot = read_split(tree, split)
        for path, row in zip(paths, hot, strict=True):
            if known.get(path) != " ".join("1" if label else "0" for label in row):
                raise FileFormatError(
                    f"{tree.protocol.name}: {path} of {FILES[split]} has other labels in the tarball's lists, or is "
                    "not in them; they are of another version, so the database cannot be rebuilt from them"
                )
        if split == "query":
            queries = set(paths)
    return [f"{path} {label}" for path, label in known.items() if path not in queries]


def _read_tags(tree: Tree, path: str) -> dict[str, str]:
    """Tags by Flickr's number of the photo: a line each, the number first."""
    texts = {}
    # free text in many languages: a wrong byte in a tag is no reason to stop
    for line in tree.file(path).read_text("utf-8", errors="replace").split("\n"):
        number, *words = line.split() or [""]
        if words:
            texts[number] = " ".join(words)
    return texts
