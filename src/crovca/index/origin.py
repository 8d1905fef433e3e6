"""What made codes and embeddings: those of another model or encoder than an index's are refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crovca.errors import InvalidInputError


@dataclass(frozen=True)
class Origin:
    """Where codes and embeddings come from, as far as it is known.

    Attributes:
        model: ``Hasher.fingerprint`` of the model that made the codes, or None.
        encoder: what made the embeddings (``archive.queries.describe_encoder``): "encoder", "revision", "identity" with
            "weights_sha256", "preprocessing"; or None.
    """

    model: str | None = None
    encoder: Mapping[str, Any] | None = None

    def check(self, other: Origin, what: str) -> None:
        """Refuse what is known to have been made by something else.

        Args:
            other: of what is brought to the index whose origin this is.
            what: what messages call that: "these codes".

        Raises:
            InvalidInputError: another model, other weights of the encoder, or another preprocessing.
        """
        if self.model and other.model and self.model != other.model:
            raise InvalidInputError(
                f"{what} were made by another model ({other.model[:12]}) than those of the index "
                f"({self.model[:12]}): encode them with the index's own model, or learn it anew for both with "
                "'crovca index refit'"
            )
        if not self.encoder or not other.encoder:
            return
        for part, name in (("identity", "encoder"), ("preprocessing", "preprocessing of the encoder")):
            ours, theirs = (_distinctive(one.get(part)) for one in (self.encoder, other.encoder))
            if ours is not None and theirs is not None and ours != theirs:
                raise InvalidInputError(
                    f"{what} come from another {name}, {_named(other.encoder)}, than those of the index, "
                    f"{_named(self.encoder)}: embed them as the index's were, or change the index to the other encoder "
                    "with 'crovca index refit --embeddings'"
                )

    def known(self, other: Origin) -> Origin:
        """What is known of this, or else of the other."""
        return Origin(self.model or other.model, self.encoder or other.encoder)


def _distinctive(part: Any) -> Any:
    """What decides an embedding; not where the weights lie, nor what they were called there."""
    if not isinstance(part, Mapping):
        return None
    return {name: value for name, value in part.items() if name not in ("source", "revision")}


def _named(encoder: Mapping[str, Any]) -> str:
    identity = encoder.get("identity") or {}
    revision = f", revision {encoder['revision']}" if encoder.get("revision") else ""
    return f"{encoder.get('encoder')} (weights {str(identity.get('weights_sha256'))[:12]}{revision})"
