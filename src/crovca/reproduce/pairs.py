"""Image and text: the texts of a split, their embeddings, and models that learn from pairs.

::

    WORK/texts/DATASET-SPLIT.csv                       the texts, as 'crovca embed --texts' takes them
    WORK/embeddings/ENCODER/DATASET/SPLIT.texts/       stores of their embeddings
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import Embeddings, Rows
from crovca.datasets.structure import Dataset
from crovca.embedding.job import Origin
from crovca.errors import ConfigError, InvalidInputError
from crovca.files import atomic_file
from crovca.hasher import Hasher
from crovca.reproduce.inputs import Inputs

if TYPE_CHECKING:
    from crovca.reproduce.paper import Training

_SAMPLE = 65_536  # pairs that a random HashCoder sees

Int64 = npt.NDArray[np.int64]
Labels = npt.NDArray[Any] | None


@dataclass(frozen=True)
class Texts:
    """The texts of a split: captions, tags or prompts. An item may have several.

    Attributes:
        ids: str (m,) the item's path (its number, where the items are texts), "#", and the text's number there.
        texts: the m texts.
        items: int64 (m,) the row of the item that each belongs to, ascending.
        labels: of the items, as ``image_labels`` has them.
    """

    ids: npt.NDArray[np.str_]
    texts: tuple[str, ...]
    items: Int64
    labels: Labels

    def __len__(self) -> int:
        return len(self.texts)


def texts_of(dataset: Dataset, split: str) -> Texts:
    """The texts of a split."""
    labels = image_labels(dataset, split)
    found = dataset.splits[split]
    captions = found.captions
    if captions is None or not len(captions):
        raise ConfigError(f"the split {split!r} of {dataset.protocol.name} has no texts")
    items = captions.items
    names = np.arange(len(found)).astype(np.str_) if found.paths is None else found.paths
    numbers = np.arange(len(items)) - np.searchsorted(items, items)  # items are ascending
    ids = [f"{name}#{number}" for name, number in zip(names[items], numbers, strict=True)]
    return Texts(np.array(ids, np.str_), captions.texts, items, None if labels is None else labels[items])


def image_labels(dataset: Dataset, split: str) -> Labels:
    """Labels by which the image and the text of an item answer each other, and others as the protocol has it.

    Where only an item's own captions are right, each item is a class of its own: its row.
    """
    if split not in dataset.splits:
        known = ", ".join(dataset.splits)
        raise ConfigError(f"{dataset.protocol.name} has no split {split!r}; it has {known}")
    found = dataset.splits[split]
    return np.arange(len(found)) if dataset.protocol.relevance == "own caption" else found.labels


def labels_of(wanted: npt.NDArray[Any], ids: npt.NDArray[Any], labels: Labels) -> Labels:
    """Labels of the wanted ids, some of ``ids`` (unique) to whose rows ``labels`` belong."""
    if labels is None:
        return None
    order = np.argsort(ids)
    rows = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    strange = wanted[ids[rows] != wanted]
    if len(strange):
        raise InvalidInputError(f"{str(strange[0])!r} is not among the dataset's items; did the data change?")
    return labels[rows]


def text_embeddings(inputs: Inputs, encoder: str, dataset: str, split: str) -> Embeddings:
    """Embeddings of the texts of a split by the text tower of an encoder as it is."""
    listed = listed_texts(inputs, dataset, split)
    folder = inputs.work / "embeddings" / encoder / dataset / f"{split}.texts"
    found = inputs.embed(encoder, Origin("texts", str(listed.resolve())), folder)
    texts = texts_of(inputs.dataset(dataset), split)
    assert found.ids is not None
    return replace(found, labels=labels_of(found.ids, texts.ids, texts.labels))


def fit_pairs(inputs: Inputs, training: Training, parameters: dict[str, Any], checkpoint: Path | None) -> Hasher:
    """Train a model on the pairs of image and text of a dataset; a random one is only put together.

    An image's texts are its views: one of them is drawn at each step. "lora" adapts both towers, "probing" leaves them
    as they are. The two random HashCoders have their layers in common: drawn each for itself they would have nothing to
    do with each other, and rank at chance.
    """
    saving: dict[str, Any] = {"checkpoint": checkpoint, "observer": inputs.observer}
    if training.fitting == "lora":
        texts = texts_of(inputs.dataset(training.dataset), "train")
        source = inputs.source(training.dataset, "train")
        captions: list[list[str]] = [[] for _ in range(len(source))]
        for text, item in zip(texts.texts, texts.items.tolist(), strict=True):
            captions[item].append(text)
        return Hasher.for_pairs(preset=training.preset, **parameters).fit(source, texts=captions, **saving)
    images, words = _paired(inputs, training)
    if training.setting == "random":
        drawn = {name: parameters[name] for name in ("seed", "device")}
        drawn |= {"bits": training.bits, "shared": True}
        return Hasher.for_pairs(preset=training.preset, **drawn).initialize(images, words)
    # of the towers, which stand aside
    parameters = {name: value for name, value in parameters.items() if name not in ("encoder", "dtype")}
    return Hasher.for_pairs(preset=training.preset, **parameters).fit(images, texts=words, **saving)


def _paired(inputs: Inputs, training: Training) -> tuple[Rows, Rows]:
    """Embeddings (n, d) of the images that have an embedding and a text, and (n, w, e) of their texts.

    An image with fewer texts than another has them more than once.
    """
    dataset = inputs.dataset(training.dataset)
    texts, paths = texts_of(dataset, "train"), dataset.splits["train"].paths
    images = inputs.embeddings(training.encoder, training.dataset, "train")
    words = text_embeddings(inputs, training.encoder, training.dataset, "train")
    assert paths is not None
    assert images.ids is not None
    assert words.ids is not None
    row_of = {name: row for row, name in enumerate(images.ids.tolist())}
    items = labels_of(words.ids, texts.ids, texts.items)
    assert items is not None
    found: dict[int, list[int]] = {}
    for row, path in enumerate(paths[items].tolist()):
        if path in row_of:
            found.setdefault(row_of[path], []).append(row)
    if len(found) < 2:
        raise InvalidInputError(
            f"{training.dataset}: training needs at least 2 pairs of image and text that can be read, "
            f"there are {len(found)}"
        )
    rows, most = sorted(found), max(map(len, found.values()))
    if training.setting == "random":  # statistics of some tell as much as those of three million
        rows = rows[:: -(-len(rows) // _SAMPLE)]
    several = [[found[row][number % len(found[row])] for number in range(most)] for row in rows]
    return _Chosen(images.values, np.array(rows)), _Chosen(words.values, np.array(several))


class _Chosen:
    """Some rows of embeddings in an order of their own, read when they are asked for.

    Args:
        values: (m, d).
        rows: (n,), or (n, w) with w rows for each item.
    """

    def __init__(self, values: Rows, rows: Int64) -> None:
        self._values, self._rows = values, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d), or (n, w, d)."""
        return (*self._rows.shape, self._values.shape[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self._values.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        chosen = self._rows[rows]
        return np.asarray(self._values[chosen.reshape(-1)]).reshape(*chosen.shape, self.shape[-1])


def listed_texts(inputs: Inputs, dataset: str, split: str) -> Path:
    """The file of the texts of a split, a CSV; every field is quoted, so that a text may hold any character."""
    texts = texts_of(inputs.dataset(dataset), split)
    path = inputs.work / "texts" / f"{dataset}-{split}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["id", "caption"])
        writer.writerows(zip(texts.ids.tolist(), texts.texts, strict=True))
    return path
