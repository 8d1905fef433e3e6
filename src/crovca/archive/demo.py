"""The demo: hash codes of scikit-learn's handwritten digits, unsupervised, supervised, and from class names.

The embeddings are the 64 pixels of each digit. No text encoder is at hand offline, so a class name is
turned into counts of its character n-grams: a stand-in that knows spelling, not meaning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.data.encoded import Encoded
from crovca.evaluation.evaluate import Evaluation, Ranked, evaluate
from crovca.evaluation.report import Subject
from crovca.hasher import Hasher
from crovca.metrics import REPORTED

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
QUERIES = 300
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("{}", "the digit {}", "a handwritten {}")


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table. ``seconds`` is the training time, None for the float embedding."""

    what: str
    bytes_per_item: int
    map: float
    seconds: float | None


@dataclass(frozen=True)
class DemoResult:
    """The table, and what a report is made of."""

    k: int
    rows: list[DemoRow]
    subjects: list[Subject]
    seconds: float


def run_demo(advance: Callable[[str], None] = lambda what: None) -> DemoResult:
    """Train and measure everything the demo shows; ``advance`` is told what comes next."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    started = time.perf_counter()
    pixels, digits = load_digits(return_X_y=True)
    rows = train_test_split(np.arange(len(pixels)), test_size=QUERIES, stratify=digits, random_state=0)
    database, query = (
        _Digits(np.asarray(pixels[part], np.float32), digits[part].astype(np.int64), part.astype(np.int64))
        for part in rows
    )

    advance("unsupervised, 16, 32 and 64 bits")
    unsupervised, fit_seconds = _timed(lambda: Hasher(bits=64).fit(database.pixels))
    first = _measure(unsupervised, query, database, (16, 32, 64))
    cosine = first.floats["cosine"]
    table = [DemoRow("the 64 floats themselves, cosine", 64 * 4, _map(cosine), None)]
    for length in first.lengths:
        label = f"unsupervised, {length.bits} bits"
        table.append(DemoRow(label, length.bits // 8, _map(length.scores[REPORTED]), fit_seconds))

    advance("supervised, 16 bits")
    supervised, seconds = _timed(lambda: Hasher(bits=16, nested=False).fit(database.pixels, database.labels))
    second = _measure(supervised, query, database, (16,))
    table.append(DemoRow("supervised, 16 bits", 2, _map(second.lengths[0].scores[REPORTED]), seconds))

    advance("text to image, 64 bits")
    texts = _name_vectors()  # (templates, 10, e)
    captions = texts.transpose(1, 0, 2)[database.labels]  # (n, templates, e): one is drawn at each step
    pairs = Hasher.for_pairs(bits=64, nested=False)
    cross, seconds = _timed(lambda: pairs.fit(database.pixels, texts=captions))
    asked, found = cross.logits(texts[0], modality="texts"), cross.logits(database.pixels, modality="images")
    names = Encoded(Codes.from_logits(asked), labels=np.arange(10), logits=asked)
    images = Encoded(Codes.from_logits(found), database.ids, database.labels, found)
    third = evaluate(names, images)
    table.append(DemoRow("class name to image, 64 bits", 8, _map(third.lengths[0].scores[REPORTED]), seconds))

    def image_of(item: Any) -> Image:
        from PIL import Image

        return Image.fromarray((pixels[int(item)].reshape(8, 8) * (255 / 16)).astype(np.uint8), "L")

    def of_digits(title: str, evaluation: Evaluation, hasher: Hasher) -> Subject:
        ours, theirs = query.encoded(hasher), database.encoded(hasher)
        return Subject(title, evaluation, ours, theirs, database.pixels, image_of)

    subjects = [
        of_digits("Handwritten digits, unsupervised", first, unsupervised),
        of_digits("Handwritten digits, supervised, 16 bits", second, supervised),
        Subject(
            "From class names to images (character n-grams stand in for a text encoder)",
            third,
            names,
            images,
            image_of=image_of,
            query_text=lambda number: NAMES[number],
        ),
    ]
    return DemoResult(first.k, table, subjects, time.perf_counter() - started)


@dataclass(frozen=True)
class _Digits:
    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]

    def encoded(self, hasher: Hasher) -> Encoded:
        logits = hasher.logits(self.pixels)
        return Encoded(hasher.encode(self.pixels), self.ids, self.labels, logits)


def _measure(hasher: Hasher, query: _Digits, database: _Digits, lengths: tuple[int, ...]) -> Evaluation:
    return evaluate(
        query.encoded(hasher),
        database.encoded(hasher),
        lengths=lengths,
        query_embeddings=query.pixels,
        database_embeddings=database.pixels,
    )


def _name_vectors() -> npt.NDArray[np.float32]:
    """Counts of the character n-grams of each class name in each template: float32 (templates, 10, e)."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [template.format(name) for template in TEMPLATES for name in NAMES]
    counts = CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit_transform(texts)
    return np.asarray(counts.toarray(), np.float32).reshape(len(TEMPLATES), len(NAMES), -1)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _map(ranked: Ranked | None) -> float:
    assert ranked is not None
    assert ranked.map is not None
    return ranked.map
