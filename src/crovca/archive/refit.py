"""An index that has outgrown its model: telling so, and learning anew from what is in it now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crovca.archive.ingest import encoder_of
from crovca.data.embeddings import Embeddings, Rows, evenly_spaced, load_embeddings
from crovca.errors import ConfigError, CrovcaError, InvalidInputError
from crovca.files import remove
from crovca.hasher import Hasher
from crovca.hasher.drift import Drift
from crovca.hashing.train import Observer
from crovca.index.index import HashIndex
from crovca.index.origin import Origin
from crovca.index.originals import Keep, Picked
from crovca.index.tuned import Tuned, settings_of
from crovca.index.tuning import tune

PARTIAL = "refit.partial"
_MOST_COMPARED = 4096  # items among which neighbors are looked for
_LOSES = 0.1  # so much less recall among the new is worth learning for


def by_id(data: Embeddings, where: Path | str) -> Callable[[Any], Rows]:
    """Gives the embeddings of ids, in their order."""
    if data.views > 1:
        raise InvalidInputError(f"{where} holds {data.views} views of each item; give embeddings of one view")
    known = np.arange(len(data)) if data.ids is None else data.ids
    order = np.argsort(known, kind="stable")
    ordered = known[order]

    def rows_of(ids: Any) -> Rows:
        wanted = np.asarray(ids, ordered.dtype if ordered.dtype.kind == "i" else np.str_)
        place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        missing = wanted[ordered[place] != wanted]
        if len(missing):
            raise InvalidInputError(
                f"{where} has no embeddings of {len(missing):,} items of the index, for example {missing[0].item()!r}"
            )
        return Picked(data.values, order[place])

    return rows_of


@dataclass(frozen=True)
class Refitted:
    """What became of an index: items, bits, what is kept, and what was tuned anew (None: it was not tuned before)."""

    items: int
    bits: int
    keep: Keep
    tuned: Tuned | None


def refit(
    index: Path,
    *,
    embeddings: Path | None = None,
    model: Path | None = None,
    bits: int | None = None,
    keep: Keep | None = None,
    device: str = "auto",
    force: bool = False,
    observer: Observer,
) -> Refitted:
    """Learn a model from what is in an index now, encode everything with it, and put both in place in one step.

    The old model and codes serve until then. A run that was stopped goes on from its last state of training.

    Args:
        index: its folder.
        embeddings: file or store with those of all items, by id, of any encoder; None: those that are kept.
        model: takes the place of learning one.
        bits: length of the new codes; None: as before, or the given model's.
        keep: what is kept from now on; None: as before.
        device: "auto", "cpu" or "cuda".
        force: whether a stopped run with other settings or items is thrown away.
        observer: is told how it goes.

    Raises:
        InvalidInputError: no embeddings are kept or given, or not of all items.
        ConfigError: the index's model is not one of embeddings alone, or a stopped run was of something else.
        CrovcaError: what training and writing raise.
    """
    with HashIndex.open(index, writable=True) as opened:
        view = opened.view()
        ids = view.ids(view.live())
        if not len(ids):
            raise InvalidInputError(f"{index} holds no items to learn from")
        data = None if embeddings is None else load_embeddings(embeddings)
        rows_of = None if data is None else by_id(data, embeddings or "")
        values: Rows = view.originals().take(view.live()) if rows_of is None else rows_of(ids)
        partial_run = index / PARTIAL
        if force:
            remove(partial_run)
        if model is not None:
            hasher = Hasher.load(model, device=device)
        else:
            hasher, labels = _like_the_last(opened, ids, bits, device, observer)
            hasher.fit(values, labels, checkpoint=partial_run, observer=observer)
        length = (hasher.bits if model is not None else opened.bits) if bits is None else bits
        opened.recode(
            lambda block: hasher.encode(block, length, modality=hasher.modalities[0]),
            bits=length,
            origin=Origin(hasher.fingerprint, None if embeddings is None else encoder_of(embeddings)),
            save_model=hasher.save,
            embeddings=rows_of,
            keep=keep,
            advance=partial(observer.advance, "encoding"),
        )
        remove(partial_run)
        if opened.loss.items:
            observer.message(opened.loss.sentence(opened.keep))
        tuned = None
        if view.tuned is not None and (opened.keep != "none" or rows_of is not None):
            before = settings_of(view.tuned)
            tuned = tune(
                opened, before.target, before.k, embeddings=rows_of, advance=partial(observer.advance, "tuning")
            )
            opened.keep_tuned(tuned)
        return Refitted(len(opened), opened.bits, opened.keep, tuned)


def _like_the_last(
    opened: HashIndex, ids: Any, bits: int | None, device: str, observer: Observer
) -> tuple[Hasher, Any]:
    """A hasher with the parameters of the index's model, not fitted yet, and the labels that it learns from."""
    length = opened.bits if bits is None else bits
    kept = opened.view().model
    if kept is None:
        return Hasher(bits=length, device=device), None
    last: Hasher = kept.hasher()
    if last.modalities != ("embeddings",):
        raise ConfigError(
            f"the index's model is one of {' and '.join(last.modalities)}: train it anew ('crovca finetune', "
            "'crovca train') and give it with --model"
        )
    parameters = {**last.get_params(), "device": device, "bits": max(length, last.bits if bits is None else bits)}
    if last.classes_ is None:
        if last.pairing_ != ("neighbors",):
            parameters["pairing"] = "auto"
        return Hasher(**parameters), None
    table = opened.view().metadata(opened.view().find_all(ids))
    if table is not None and "label" in table.column_names and not table.column("label").null_count:
        return Hasher(**parameters), np.asarray(table.column("label").to_pylist())
    observer.message("the model had learned from labels, which the index does not keep: learning without labels")
    return Hasher(**{**parameters, "pairing": "auto"}), None


@dataclass(frozen=True)
class Check:
    """Whether an index's model serves new items.

    Attributes:
        drift: of a sample of the new items.
        outside_before: share outside of a sample of the index; None where no embeddings are kept.
        recall, recall_before: the floats' 10 nearest that the codes have among their 100 nearest: among new items, and
            among as many of the index; None where that cannot be measured.
        items: how many new items there are.
    """

    drift: Drift
    outside_before: float | None
    recall: float | None
    recall_before: float | None
    items: int

    @property
    def advised(self) -> bool:
        """Whether learning anew is advised."""
        lost = self.recall is not None and self.recall_before is not None and self.recall < self.recall_before - _LOSES
        return self.drift.much or lost

    def sentence(self, index: Path | str) -> str:
        """One sentence, with what to do."""
        said = self.drift.sentence(f"of the {self.items:,} new items")
        if self.recall is not None:
            before = "" if self.recall_before is None else f", {self.recall_before:.0%} among the old"
            said += f", and the codes keep {self.recall:.0%} of the floats' neighbors among them{before}"
        return said + (
            f": add them, and then learn anew with 'crovca index refit {index}'." if self.advised else ": add them."
        )


def check_index(index: Path, new: Path) -> Check:
    """How far new items (a file or store of embeddings) lie from what an index's model has learned, and what its codes
    keep of their order.
    """
    data = load_embeddings(new)
    with HashIndex.open(index) as opened:
        opened.origin.check(Origin(encoder=encoder_of(new)), "the new items")
        view = opened.view()
        if view.model is None:
            raise ConfigError(f"{index} holds no model that could be outgrown: it was built from codes")
        hasher: Hasher = view.model.hasher()
        if hasher.modalities != ("embeddings",):
            raise ConfigError("a check is for models of embeddings of one kind")
        count = min(len(data), _MOST_COMPARED)
        ours = np.asarray(data.values[evenly_spaced(len(data), count)], np.float32)
        live = view.live()
        theirs = None
        if view.width is not None and len(live):
            theirs = view.originals()[live[evenly_spaced(len(live), count)]]
        return Check(
            hasher.drift(ours),
            None if theirs is None else hasher.drift(theirs).outside,
            _recall(hasher, ours),
            None if theirs is None or len(theirs) < len(ours) else _recall(hasher, theirs),
            len(data),
        )


def _recall(hasher: Hasher, values: Any) -> float | None:
    """As ``Hasher.score``; None where there are too few items for it to say anything."""
    if len(values) <= 101:
        return None
    try:
        return hasher.score(values)
    except CrovcaError:
        return None
