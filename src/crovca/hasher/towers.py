"""The network that is fine-tuned: encoders with LoRA, and a HashCoder behind each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.lora import Adapter, checkpoint_gradients
from crovca.hashing.network import HashCoder, Towers
from crovca.hashing.process_group import ALONE, ProcessGroup

__all__ = ["AdaptedTowers"]


class AdaptedTowers(Towers):
    """Views of images and texts to logits: Eq. 1 and 2 of the paper, in one module.

    Its parameters and its state are what is learned: the HashCoders and the adapters. The encoders' own weights belong
    to neither.

    Args:
        coders: as for ``Towers``.
        encoders: one for each of them.
        adapters: what LoRA added to each encoder; None: it stays frozen, as in probing.
        head_epochs: in so many epochs, the first, the HashCoders alone learn.
        shared, process_group: as for ``Towers``.
    """

    def __init__(
        self,
        coders: Sequence[HashCoder],
        encoders: Sequence[Encoder | TextEncoder],
        adapters: Sequence[Adapter | None],
        *,
        head_epochs: int = 1,
        shared: bool = False,
        process_group: ProcessGroup = ALONE,
    ) -> None:
        super().__init__(coders, shared=shared, process_group=process_group)
        self.encoders = tuple(encoders)
        self._adapted = tuple(adapters)
        self.adapters = nn.ModuleList(
            nn.Module() if adapter is None else adapter.parameters for adapter in adapters
        )
        self._head_epochs = head_epochs
        self._head_alone = False

    @property
    def trained(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def total(self) -> int:
        """How many numbers there are, those of the encoders included."""
        own = {id(parameter): parameter.numel() for parameter in self.parameters()}
        for encoder in self.encoders:
            own |= {id(parameter): parameter.numel() for parameter in encoder.model.parameters()}
        return sum(own.values())

    def train(self, mode: bool = True) -> AdaptedTowers:
        """As for any module; of the encoders only LoRA's dropout is switched."""
        super().train(mode)
        for adapter in self._adapted:
            if adapter is not None:
                adapter.train(mode)
        return self

    def begin_step(self, epoch: int, seed: int) -> None:
        """In the first epochs the encoders get no gradient; the seed is that of LoRA's dropout."""
        self._head_alone = epoch < self._head_epochs
        torch.manual_seed(seed)

    def forward(self, views: Sequence[Any]) -> Tensor:
        """Views, pixels (B, 3, H, W) or lists of B texts, to logits (v, B, bits) of the whole batch."""
        frozen = self.training and (self._head_alone or not any(self._adapted))
        with torch.no_grad() if frozen else nullcontext():
            embeddings = self._embed(views)
        return super().forward(embeddings)

    def _embed(self, views: Sequence[Any]) -> list[Tensor]:
        if len(self.encoders) == 1:
            encoder = self.encoders[0]
            assert isinstance(encoder, Encoder)
            return list(encoder.forward(torch.cat(list(views))).float().chunk(len(views)))
        embeddings: list[Tensor] = []
        for encoder, view in zip(self.encoders, views, strict=True):
            embeddings.append(encoder.forward(view).float())
        return embeddings

    @contextmanager
    def prepared(self, *, compiled: str | None = None, checkpointing: bool = False) -> Iterator[None]:
        """While they are trained: encoders compiled by this backend of torch.compile, activations not kept."""
        with ExitStack() as stack:
            if checkpointing:
                for encoder, adapter in zip(self.encoders, self._adapted, strict=True):
                    if adapter is not None:
                        stack.enter_context(checkpoint_gradients(encoder))
            plain = [encoder.model for encoder in self.encoders]
            if compiled is not None:
                for encoder in self.encoders:
                    encoder.model = torch.compile(encoder.model, backend=compiled)  # type: ignore[assignment]
            try:
                yield
            finally:
                for encoder, model in zip(self.encoders, plain, strict=True):
                    encoder.model = model
