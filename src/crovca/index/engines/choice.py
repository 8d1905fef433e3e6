"""Which engine to use for how many codes of which length. A new engine is a file here and a line in ``ENGINES``."""

from __future__ import annotations

from collections.abc import Callable

from crovca.codes import MAX_BITS, Codes
from crovca.errors import ConfigError
from crovca.index.engines.base import Engine, KeptPieces
from crovca.index.memo import imported
from crovca.metrics import METRICS

# name: module, class, and the lengths in bits that it takes
ENGINES: dict[str, tuple[str, str, tuple[int, int]]] = {
    "exact": ("crovca.index.engines.exact", "ExactEngine", (1, MAX_BITS)),
    "scan": ("crovca.index.engines.scan", "ScanEngine", (8, 512)),
    "pruned": ("crovca.index.engines.pruned", "PrunedEngine", (8, 512)),
    "buckets": ("crovca.index.engines.buckets", "BucketEngine", (1, 24)),
    "inverted": ("crovca.index.engines.inverted", "InvertedEngine", (8, 512)),
    "accelerator": ("crovca.index.engines.accelerator", "AcceleratorEngine", (1, MAX_BITS)),
}

_FEW = 256  # so few codes are scored at once, exactly
_MANY = 1 << 21  # fewer are scanned about as fast as it is told what to scan (measured)
_MOST_BYTES = 1_200_000_000  # of memory that both engines of an index may take: 50 M codes of 64 bits


def choose_engine(codes: Codes, metric: str = "bce", items: int = 0, *, laid_out: bool = False) -> str:
    """The fastest exact engine on a processor (measured: benchmarks/search.py) for codes in tie order.

    Buckets where the rows are at least a quarter of all codes that there can be; for other lengths that it takes the
    scan, or, of many codes that a query by this metric need not read all of, what leaves them out: where there is
    memory for it, and for the scan beside it, which other metrics may need; or where its pieces lie in files.

    Args:
        codes: what is to be searched.
        metric: a score of ``crovca.metrics``.
        items: how many there are in the whole index, if these are a part of it.
        laid_out: whether a segment keeps the pieces of these (``worth_laying_out``).
    """
    bits, rows = codes.bits, len(codes)

    def takes(name: str) -> bool:
        return _takes(name, bits)

    def pays() -> bool:
        return rows >= _MANY and takes("pruned") and bool(imported(ENGINES["pruned"][0]).pays(codes, metric))

    if laid_out and (not METRICS[metric].whole or pays()):  # that it pays for the others was judged when it was laid
        return "pruned"
    if rows <= _FEW:
        return "exact"
    if takes("buckets") and _all_there(codes):
        return "buckets"
    fits = not laid_out and max(rows, items) * (2 * codes.bytes_per_item + 8) <= _MOST_BYTES
    if fits and pays():
        return "pruned"
    return "scan" if takes("scan") else "exact"


def worth_laying_out(codes: Codes) -> bool:
    """Whether a segment should keep these codes in pieces as well, so that they are searched at once."""
    if len(codes) < _MANY or not _takes("pruned", codes.bits) or _all_there(codes):
        return False
    pruned = imported(ENGINES["pruned"][0])
    return bool(pruned.pays(codes, "bce") and pruned.groups_if_fewer(codes) is None)


def check_engine(name: object) -> None:
    """Raise ConfigError where there is no engine of this name."""
    if not isinstance(name, str) or name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; expected 'auto' or one of {list(ENGINES)}")


def build_engine(name: str, codes: Codes, kept: KeptPieces | None = None) -> Engine:
    """Build an engine over codes that stand in tie order; ``kept`` are their pieces, where these lie in files.

    Raises:
        ConfigError: there is no such engine, or it does not take codes of this length.
    """
    check_engine(name)
    module, kind, (low, high) = ENGINES[name]
    if not _takes(name, codes.bits):
        raise ConfigError(
            f"the engine {name!r} takes codes of {low} to {high} bits, these have {codes.bits}; use 'auto' or 'exact'"
        )
    build: Callable[..., Engine] = getattr(imported(module), kind)
    return build(codes, kept=kept) if name == "pruned" else build(codes)


def _all_there(codes: Codes) -> bool:
    """Whether there may be at least a quarter of all codes that there can be."""
    return 1 << codes.bits <= 4 * len(codes)


def _takes(name: str, bits: int) -> bool:
    low, high = ENGINES[name][2]
    return low <= bits <= high
