"""The rivals by name. A new method is one file and one line here."""

from __future__ import annotations

from dataclasses import dataclass

from crovca.errors import ConfigError
from crovca.rivals.base import BinaryRival, ScoreRival
from crovca.rivals.bihalf import BiHalf
from crovca.rivals.centred_sign import CentredSign, CentredSignOfAll
from crovca.rivals.cibhash import CIBHash
from crovca.rivals.csq import CSQ
from crovca.rivals.float_embedding import FloatCentred, FloatNormalised, FloatRaw
from crovca.rivals.fppq import FPPQ
from crovca.rivals.greedyhash import GreedyHash, GreedyHashSupervised
from crovca.rivals.hashing_baseline import HashingBaseline
from crovca.rivals.itq import ITQ, FaissITQ
from crovca.rivals.lsh import LSH
from crovca.rivals.orthohash import OrthoHash
from crovca.rivals.pca import PCA
from crovca.rivals.product_quantisation import OPQ, PQ
from crovca.rivals.rabitq import RaBitQ
from crovca.rivals.scalar_quantisation import SQ4, SQ8
from crovca.rivals.sdc import SDC
from crovca.rivals.similarity_distillation import SimilarityDistillation
from crovca.rivals.spectral_hashing import SpectralHashing

__all__ = ["RIVALS", "Rival", "rival"]


@dataclass(frozen=True)
class Rival:
    """A method.

    Attributes:
        name: how one asks for it.
        title: how a table calls it.
        method: its class; ``method(bits, seed=...)`` makes one.
    """

    name: str
    title: str
    method: type[BinaryRival | ScoreRival]


RIVALS = (
    Rival("float_raw", "float, inner product", FloatRaw),
    Rival("float_normalised", "float, cosine", FloatNormalised),
    Rival("float_centred", "float, cosine centred", FloatCentred),
    Rival("centred_sign_all", "centred sign, all numbers", CentredSignOfAll),
    Rival("centred_sign", "centred sign", CentredSign),
    Rival("lsh", "LSH", LSH),
    Rival("pca", "PCA", PCA),
    Rival("hashing_baseline", "Hashing-Baseline", HashingBaseline),
    Rival("itq", "ITQ", ITQ),
    Rival("itq_faiss", "ITQ, FAISS's", FaissITQ),
    Rival("spectral_hashing", "spectral hashing", SpectralHashing),
    Rival("bihalf", "BiHalf", BiHalf),
    Rival("greedyhash", "GreedyHash", GreedyHash),
    Rival("cibhash", "CIBHash", CIBHash),
    Rival("sdc", "SDC", SDC),
    Rival("similarity_distillation", "similarity distillation", SimilarityDistillation),
    Rival("sq8", "scalar quantisation, 8 bits", SQ8),
    Rival("sq4", "scalar quantisation, 4 bits", SQ4),
    Rival("pq", "PQ", PQ),
    Rival("opq", "OPQ", OPQ),
    Rival("rabitq", "RaBitQ", RaBitQ),
    Rival("orthohash", "OrthoHash", OrthoHash),
    Rival("csq", "CSQ", CSQ),
    Rival("greedyhash_supervised", "GreedyHash, supervised", GreedyHashSupervised),
    Rival("fppq", "FPPQ", FPPQ),
)


def rival(name: str) -> Rival:
    """The method of that name. Raises ConfigError where there is none."""
    for found in RIVALS:
        if found.name == name:
            return found
    raise ConfigError(f"unknown method {name!r}; expected some of {[found.name for found in RIVALS]}")
