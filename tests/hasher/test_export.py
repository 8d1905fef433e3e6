import json

import numpy as np
import pytest

from crovca.codes import Codes
from crovca.embedding.items import as_images, plain
from crovca.errors import CrovcaError, MissingDependencyError, OutputExistsError
from crovca.hasher import Hasher
from crovca.hasher.onnx import export_onnx
from tests.encoders import tiny
from tests.needs import needs

needs("onnx", "onnxscript")
runtime = pytest.importorskip("onnxruntime")

QUICK = {"epochs": 3, "batch_size": 12, "dtype": "float32", "device": "cpu", "head_epochs": 0}


def run(path, values):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.shape[0] == "items"
    codes, logits = session.run(["codes", "logits"], {taken.name: values})
    return codes, logits


def agree(codes, logits, expected):
    """Packed as crovca packs, and the same bits wherever they are not a matter of rounding."""
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, Codes.from_logits(logits).packed)
    ours, theirs = (
        np.unpackbits(packed, axis=1)[:, : expected.shape[1]] for packed in (Codes.from_logits(expected).packed, codes)
    )
    sure = np.abs(expected) > 1e-4
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(ours[sure], theirs[sure])


def test_images_to_codes(tmp_path, encoder, photos):
    bits = 13
    hasher = Hasher.for_images(encoder, bits, **QUICK).fit(photos)
    described = export_onnx(hasher, tmp_path / "x")
    assert json.loads((tmp_path / "x" / "export.json").read_text()) == described
    assert described["bits"] == bits
    assert described["graphs"]["image_to_codes.onnx"] == {
        "input": "images", "shape": ["items", 28, 28, 3], "dtype": "uint8",
    }  # fmt: skip
    source = as_images(photos)
    prepare = plain(hasher.towers_["images"].encoder.preprocessing)
    pixels = np.stack([prepare(source.read(row)) for row in range(len(source))])
    logits, embeddings = hasher.logits(photos), hasher.embed(photos)
    for items in (1, 2, 5, 24):
        agree(*run(tmp_path / "x" / "image_to_codes.onnx", pixels[:items]), logits[:items])
        agree(*run(tmp_path / "x" / "embedding_to_codes.onnx", embeddings[:items]), logits[:items])
    assert np.array_equal(hasher.logits(photos), logits)  # the hasher goes on as before


def test_another_family(tmp_path, photos):
    made, processor, _ = tiny.models()["CLIP"]
    folder = tiny.save(made, tmp_path / "encoder", processor)
    hasher = Hasher.for_images(folder, 16, **QUICK, lora_rank=2).fit(photos)
    export_onnx(hasher, tmp_path / "x")
    source = as_images(photos)
    prepare = plain(hasher.towers_["images"].encoder.preprocessing)
    pixels = np.stack([prepare(source.read(row)) for row in range(len(source))])
    agree(*run(tmp_path / "x" / "image_to_codes.onnx", pixels[:7]), hasher.logits(photos)[:7])


def test_embeddings_to_codes(tmp_path):
    random = np.random.default_rng(0)
    X, T = (random.normal(size=(60, 12)).astype(np.float32) * 9 + 4, random.normal(size=(60, 7)).astype(np.float32))
    hasher = Hasher(bits=20, epochs=3, center=True, hashcoder="large", device="cpu").fit(X)
    assert list(export_onnx(hasher, tmp_path / "one")["graphs"]) == ["embedding_to_codes.onnx"]
    for items in (1, 3, 60):
        agree(*run(tmp_path / "one" / "embedding_to_codes.onnx", X[:items]), hasher.logits(X[:items]))
    codes, logits = run(tmp_path / "one" / "embedding_to_codes.onnx", X[:0])
    assert (codes.shape, logits.shape) == ((0, 3), (0, 20))
    both = Hasher.for_pairs(bits=8, epochs=3, device="cpu").fit(X, texts=T)
    assert export_onnx(both, tmp_path / "two")["preprocessing"] is None
    agree(*run(tmp_path / "two" / "image_embedding_to_codes.onnx", X), both.logits(X, modality="images"))
    agree(*run(tmp_path / "two" / "text_embedding_to_codes.onnx", T), both.logits(T, modality="texts"))


def test_nothing_is_replaced_or_half_written(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    hasher = Hasher(bits=8, epochs=1, device="cpu").fit(X)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    for force in (False, True):
        with pytest.raises(OutputExistsError):
            export_onnx(hasher, tmp_path / "mine", force=force)
    with pytest.raises(CrovcaError, match="not fitted"):
        export_onnx(Hasher(), tmp_path / "x")
    usual = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "onnxscript" else usual(name, *more)
    )
    with pytest.raises(MissingDependencyError, match=r"crovca\[onnx\]"):
        export_onnx(hasher, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
