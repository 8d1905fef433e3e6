"""The network of a model: a tower for each modality, which the training loop sees as one module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from crovca.hashing.network import HashCoder
from crovca.hashing.process_group import ALONE, ProcessGroup

if TYPE_CHECKING:
    from crovca.encoders.encoder import Encoder, TextEncoder
    from crovca.encoders.lora import Adapter

Modality = Literal["embeddings", "images", "texts"]


class Tower(nn.Module):
    """One modality's way to logits: Eq. 1 and 2 of the paper.

    Its parameters and its state are what is learned: the HashCoder and the adapter. The encoder's own weights belong to
    neither.

    Args:
        coder: the HashCoder.
        modality: what its items are.
        encoder: makes embeddings of them; None: they are embeddings.
        adapter: what LoRA added to the encoder; None: it stays frozen, as in probing.
    """

    def __init__(
        self,
        coder: HashCoder,
        modality: Modality = "embeddings",
        encoder: Encoder | TextEncoder | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.coder = coder
        self.modality = modality
        self.encoder = encoder
        self.lora = adapter
        if adapter is not None:
            self.adapter = adapter.parameters

    def train(self, mode: bool = True) -> Tower:
        """As for any module; of the encoder only LoRA's dropout is switched."""
        super().train(mode)
        if self.lora is not None:
            self.lora.train(mode)
        return self

    def embed(self, view: Any) -> Tensor:
        """A view, pixels (B, 3, H, W), a list of B texts or embeddings, to embeddings (B, d)."""
        return view if self.encoder is None else self.encoder.forward(view).float()


class Towers(nn.Module):
    """One tower that all views go through, or one for each view.

    Args:
        towers: the towers.
        shared: several have the layers of the first; each keeps its own statistics.
        head_epochs: in so many epochs, the first, the HashCoders alone learn.
        process_group: processes that each have a part of the batch.

    Attributes:
        on_features: views are what ``HashCoder.features`` gives, computed once before a training.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        *,
        shared: bool = False,
        head_epochs: int = 0,
        process_group: ProcessGroup = ALONE,
    ) -> None:
        super().__init__()
        if shared:
            for tower in towers[1:]:
                tower.coder.layers = towers[0].coder.layers
        self.towers = nn.ModuleList(towers)
        self.process_group = process_group
        self._head_epochs, self._head_alone = head_epochs, False
        self.on_features = False

    def __iter__(self) -> Iterator[Tower]:
        for tower in self.towers:
            assert isinstance(tower, Tower)
            yield tower

    def __getitem__(self, modality: str) -> Tower:
        return next(tower for tower in self if tower.modality == modality)

    @property
    def coders(self) -> list[HashCoder]:
        """The HashCoders, in the order of the modalities."""
        return [tower.coder for tower in self]

    @property
    def trained(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def total(self) -> int:
        """How many numbers there are, those of the encoders included."""
        own = {id(parameter): parameter.numel() for parameter in self.parameters()}
        for tower in self:
            if tower.encoder is not None:
                own |= {id(parameter): parameter.numel() for parameter in tower.encoder.model.parameters()}
        return sum(own.values())

    def begin_step(self, epoch: int, seed: int) -> None:
        """Be told of a training step: in the first epochs encoders get no gradient.

        The seed is of LoRA's dropout at this step, in this process.
        """
        self._head_alone = epoch < self._head_epochs
        if any(tower.encoder is not None for tower in self):
            torch.manual_seed(seed)

    def forward(self, views: Sequence[Any]) -> Tensor:
        """Views to logits (v, B, bits) of the whole batch. Each view is normalized by itself.

        Args:
            views: of each modality, or several of the only one: embeddings (B, d), pixels (B, 3, H, W), lists of texts.
        """
        frozen = self.training and (self._head_alone or all(tower.lora is None for tower in self))
        towers = list(self)
        if len(towers) == 1:  # one product for all views
            with torch.no_grad() if frozen else nullcontext():
                embeddings = towers[0].embed(torch.cat(list(views)))
            coder = towers[0].coder
            raw = coder.learned(embeddings) if self.on_features else coder.raw(embeddings)
            outputs = torch.stack(raw.chunk(len(views)))
            return torch.stack([coder.norm(part) for part in self.process_group.gather(outputs, dim=1)])
        logits = []
        for tower, view in zip(towers, views, strict=True):
            with torch.no_grad() if frozen else nullcontext():
                embeddings = tower.embed(view)
            raw = tower.coder.learned(embeddings) if self.on_features else tower.coder.raw(embeddings)
            logits.append(tower.coder.norm(self.process_group.gather(raw)))
        return torch.stack(logits)

    @contextmanager
    def prepared(self, *, compiled: str | None = None, checkpointing: bool = False) -> Iterator[None]:
        """While they are trained: encoders compiled by this backend of torch.compile, activations not kept."""
        from crovca.encoders.lora import checkpoint_gradients

        with ExitStack() as stack:
            for tower in self:
                if tower.encoder is None:
                    continue
                if checkpointing and tower.lora is not None:
                    stack.enter_context(checkpoint_gradients(tower.encoder))
                if compiled is not None:
                    plain = tower.encoder.model
                    stack.callback(setattr, tower.encoder, "model", plain)
                    tower.encoder.model = torch.compile(plain, backend=compiled)  # type: ignore[assignment]
            yield
