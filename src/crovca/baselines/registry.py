"""The baselines by name. A new method is its file and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from crovca.errors import ConfigError

if TYPE_CHECKING:
    from crovca.baselines.base import BinaryBaseline, ScoreBaseline


@dataclass(frozen=True)
class Baseline:
    """A method; ``home`` is the module of this room and the class, imported when it is used."""

    name: str
    title: str
    home: str

    @property
    def method(self) -> type[BinaryBaseline | ScoreBaseline]:
        """The class; ``method(bits, seed=...)`` makes one."""
        module, _, name = self.home.partition(":")
        found: type[BinaryBaseline | ScoreBaseline] = getattr(import_module(f"crovca.baselines.{module}"), name)
        return found


BASELINES = (
    Baseline("float_raw", "float, inner product", "quantizers:FloatRaw"),
    Baseline("float_normalized", "float, cosine", "quantizers:FloatNormalized"),
    Baseline("float_centered", "float, cosine centered", "quantizers:FloatCentered"),
    Baseline("centered_sign_all", "centered sign, all numbers", "linear:CenteredSignOfAll"),
    Baseline("centered_sign", "centered sign", "linear:CenteredSign"),
    Baseline("lsh", "LSH", "linear:LSH"),
    Baseline("pca", "PCA", "linear:PCA"),
    Baseline("hashing_baseline", "Hashing-Baseline", "linear:HashingBaseline"),
    Baseline("itq", "ITQ", "linear:ITQ"),
    Baseline("itq_faiss", "ITQ, FAISS's", "linear:FaissITQ"),
    Baseline("spectral_hashing", "spectral hashing", "linear:SpectralHashing"),
    Baseline("bihalf", "BiHalf", "learned:BiHalf"),
    Baseline("greedyhash", "GreedyHash", "learned:GreedyHash"),
    Baseline("cibhash", "CIBHash", "learned:CIBHash"),
    Baseline("sdc", "SDC", "learned:SDC"),
    Baseline("similarity_distillation", "similarity distillation", "learned:SimilarityDistillation"),
    Baseline("sq8", "scalar quantization, 8 bits", "quantizers:SQ8"),
    Baseline("sq4", "scalar quantization, 4 bits", "quantizers:SQ4"),
    Baseline("pq", "PQ", "quantizers:PQ"),
    Baseline("opq", "OPQ", "quantizers:OPQ"),
    Baseline("rabitq", "RaBitQ", "quantizers:RaBitQ"),
    Baseline("rabitq_2", "RaBitQ, 2 bits a number", "quantizers:RaBitQ2"),
    Baseline("rabitq_4", "RaBitQ, 4 bits a number", "quantizers:RaBitQ4"),
    Baseline("turboquant_1", "TurboQuant, 1 bit a number", "quantizers:TurboQuant1"),
    Baseline("turboquant_2", "TurboQuant, 2 bits a number", "quantizers:TurboQuant2"),
    Baseline("turboquant_4", "TurboQuant, 4 bits a number", "quantizers:TurboQuant4"),
    Baseline("ash_1", "ASH, 1 bit a number", "quantizers:ASH1"),
    Baseline("ash_2", "ASH, 2 bits a number", "quantizers:ASH2"),
    Baseline("ash_4", "ASH, 4 bits a number", "quantizers:ASH4"),
    Baseline("ash_8", "ASH, 8 bits a number", "quantizers:ASH8"),
    Baseline("orthohash", "OrthoHash", "learned:OrthoHash"),
    Baseline("csq", "CSQ", "learned:CSQ"),
    Baseline("greedyhash_supervised", "GreedyHash, supervised", "learned:GreedyHashSupervised"),
    Baseline("fppq", "FPPQ", "fppq:FPPQ"),
)


def baseline(name: str) -> Baseline:
    """The method of that name. Raises ConfigError where there is none."""
    for found in BASELINES:
        if found.name == name:
            return found
    raise ConfigError(f"unknown method {name!r}; expected some of {[found.name for found in BASELINES]}")
