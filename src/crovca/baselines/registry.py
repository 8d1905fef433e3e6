"""The baselines by name. A new method is its class and one line here."""

from __future__ import annotations

from dataclasses import dataclass

from crovca.baselines.base import BinaryBaseline, ScoreBaseline
from crovca.baselines.bihalf import BiHalf
from crovca.baselines.cibhash import CIBHash
from crovca.baselines.csq import CSQ
from crovca.baselines.float_embedding import FloatCentered, FloatNormalized, FloatRaw
from crovca.baselines.fppq import FPPQ
from crovca.baselines.greedyhash import GreedyHash, GreedyHashSupervised
from crovca.baselines.linear import (
    ITQ,
    LSH,
    PCA,
    CenteredSign,
    CenteredSignOfAll,
    FaissITQ,
    HashingBaseline,
    SpectralHashing,
)
from crovca.baselines.orthohash import OrthoHash
from crovca.baselines.quantizers import (
    ASH1,
    ASH2,
    ASH4,
    ASH8,
    OPQ,
    PQ,
    SQ4,
    SQ8,
    RaBitQ,
    RaBitQ2,
    RaBitQ4,
    TurboQuant1,
    TurboQuant2,
    TurboQuant4,
)
from crovca.baselines.sdc import SDC
from crovca.baselines.similarity_distillation import SimilarityDistillation
from crovca.errors import ConfigError


@dataclass(frozen=True)
class Baseline:
    """A method.

    Attributes:
        name: how one asks for it.
        title: how a table calls it.
        method: its class; ``method(bits, seed=...)`` makes one.
    """

    name: str
    title: str
    method: type[BinaryBaseline | ScoreBaseline]


BASELINES = (
    Baseline("float_raw", "float, inner product", FloatRaw),
    Baseline("float_normalized", "float, cosine", FloatNormalized),
    Baseline("float_centered", "float, cosine centered", FloatCentered),
    Baseline("centered_sign_all", "centered sign, all numbers", CenteredSignOfAll),
    Baseline("centered_sign", "centered sign", CenteredSign),
    Baseline("lsh", "LSH", LSH),
    Baseline("pca", "PCA", PCA),
    Baseline("hashing_baseline", "Hashing-Baseline", HashingBaseline),
    Baseline("itq", "ITQ", ITQ),
    Baseline("itq_faiss", "ITQ, FAISS's", FaissITQ),
    Baseline("spectral_hashing", "spectral hashing", SpectralHashing),
    Baseline("bihalf", "BiHalf", BiHalf),
    Baseline("greedyhash", "GreedyHash", GreedyHash),
    Baseline("cibhash", "CIBHash", CIBHash),
    Baseline("sdc", "SDC", SDC),
    Baseline("similarity_distillation", "similarity distillation", SimilarityDistillation),
    Baseline("sq8", "scalar quantization, 8 bits", SQ8),
    Baseline("sq4", "scalar quantization, 4 bits", SQ4),
    Baseline("pq", "PQ", PQ),
    Baseline("opq", "OPQ", OPQ),
    Baseline("rabitq", "RaBitQ", RaBitQ),
    Baseline("rabitq_2", "RaBitQ, 2 bits a number", RaBitQ2),
    Baseline("rabitq_4", "RaBitQ, 4 bits a number", RaBitQ4),
    Baseline("turboquant_1", "TurboQuant, 1 bit a number", TurboQuant1),
    Baseline("turboquant_2", "TurboQuant, 2 bits a number", TurboQuant2),
    Baseline("turboquant_4", "TurboQuant, 4 bits a number", TurboQuant4),
    Baseline("ash_1", "ASH, 1 bit a number", ASH1),
    Baseline("ash_2", "ASH, 2 bits a number", ASH2),
    Baseline("ash_4", "ASH, 4 bits a number", ASH4),
    Baseline("ash_8", "ASH, 8 bits a number", ASH8),
    Baseline("orthohash", "OrthoHash", OrthoHash),
    Baseline("csq", "CSQ", CSQ),
    Baseline("greedyhash_supervised", "GreedyHash, supervised", GreedyHashSupervised),
    Baseline("fppq", "FPPQ", FPPQ),
)


def baseline(name: str) -> Baseline:
    """The method of that name. Raises ConfigError where there is none."""
    for found in BASELINES:
        if found.name == name:
            return found
    raise ConfigError(f"unknown method {name!r}; expected some of {[found.name for found in BASELINES]}")
