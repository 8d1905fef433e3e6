"""``crovca.embed`` and the block iterator: one way from items to embeddings, which refuses early and goes on."""

import logging
import shutil

import numpy as np
import pytest
import torch

import crovca
from crovca.cli.main import main
from crovca.embedding.blocks import embed_blocks
from crovca.embedding.items import as_images, as_texts
from crovca.encoders import encoder as encoders
from crovca.encoders.encoder import Encoder, TextEncoder, load_once
from crovca.errors import ConfigError, CrovcaError, InvalidInputError, OutputExistsError
from tests.needs import needs
from tests.pictures import as_bytes, picture, write_all

needs("transformers")


@pytest.fixture
def photos(tmp_path):
    return write_all_to(tmp_path / "photos")


def write_all_to(folder):
    files = {f"{name}/{number}.jpg": as_bytes(picture(10 * number)) for number in range(4) for name in "ab"}
    write_all(folder, files | {"a/broken.jpg": b"no image"})
    return folder


class Heard:
    """An observer that remembers."""

    def __init__(self):
        self.messages, self.shares = [], []

    def advance(self, _, share):
        self.shares.append(share)

    def message(self, text):
        self.messages.append(text)


def never(*_, **__):
    raise AssertionError("the encoder was loaded")


def test_embed_gives_the_commands_bytes(photos, folders, tmp_path):
    place, heard = str(folders["ViT"][0]), Heard()
    found = crovca.embed(photos, place, tmp_path / "store", dtype="float32", observer=heard)
    assert (found.embeddings.ids == sorted(f"{name}/{i}.jpg" for i in range(4) for name in "ab")).all()
    assert [(error.id, error.reason) for error in found.left_out] == [("a/broken.jpg", "not an image")]
    assert (found.items_now, found.summary.finished, heard.shares[-1]) == (9, True, 1.0)
    arguments = ["embed", photos, "--encoder", place, "--dtype", "float32", "-o", tmp_path / "other"]
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 0
    for name in ("embeddings.npy", "items.parquet", "errors.parquet"):
        mine, theirs = (tmp_path / store / "part-00000" / name for store in ("store", "other"))
        assert mine.read_bytes() == theirs.read_bytes()


def test_items_in_memory_and_an_encoder_that_is_loaded(folders, tmp_path):
    tower = Encoder.load(folders["ViT"][0], device="cpu", dtype="float32")
    items = [np.asarray(picture(number).resize((40, 40))) for number in range(3)]
    found = crovca.embed(items, tower, tmp_path / "store", stored="float32")
    rows = [torch.from_numpy(tower.preprocessing.crop_image(picture(n).resize((40, 40)))) for n in range(3)]
    expected = tower.embed(tower.preprocessing.normalize(torch.stack(rows)))
    np.testing.assert_allclose(found.embeddings.values[:], expected.numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="lie in this process"):
        crovca.embed(items, tower, tmp_path / "two", workers=2)
    with pytest.raises(ConfigError, match="these are texts, and the encoder is a Encoder"):
        crovca.embed(["a"], tower, tmp_path / "texts", modality="texts")
    assert not (tmp_path / "two").exists() and not (tmp_path / "texts").exists()


def test_it_goes_on_with_the_same_and_replaces_what_is_another(photos, folders, tmp_path):
    place, store = str(folders["ViT"][0]), tmp_path / "store"
    crovca.embed(photos, place, store)
    part = (store / "part-00000").stat().st_ino
    for force in (False, True):
        again = crovca.embed(photos, place, store, force=force)
        assert (again.items_now, (store / "part-00000").stat().st_ino) == (0, part)
    (photos / "b" / "new.jpg").write_bytes(as_bytes(picture(77)))
    with pytest.raises(OutputExistsError, match="another content of the source"):
        crovca.embed(photos, place, store)
    heard = Heard()
    assert crovca.embed(photos, place, store, force=True, observer=heard).items_now == 10
    assert any("embedding anew" in message for message in heard.messages)
    other = crovca.embed(photos, str(folders["DINOv2"][0]), store, force=True)
    assert other.items_now == 10 and other.job.identity["family"] == "DINOv2"
    with pytest.raises(OutputExistsError, match="a store of something else"):
        crovca.embed(photos, place, store, resume=False)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"views": 0}, "--views must be at least 1"),
        ({"views": 2}, "another --views: 1, now 2"),
        ({"stored": "int8"}, "--stored must be one of"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"seed": 3}, "another --seed"),
        ({"dtype": "bfloat16"}, "another --dtype"),
        ({"dtype": "int4"}, "another --dtype|dtype must be"),
        ({"device": "tpu"}, "unknown device"),
        ({"modality": "texts", "views": 2}, "goes with images"),
    ],
)
def test_what_can_be_refused_is_refused_before_weights_are_loaded(
    photos, folders, tmp_path, monkeypatch, settings, match
):
    place, store = str(folders["ViT"][0]), tmp_path / "store"
    crovca.embed(photos, place, store, dtype="float32")
    monkeypatch.setattr(encoders, "load_once", never)
    monkeypatch.setattr(Encoder, "load", never)
    encoders._KEPT.clear()
    with pytest.raises(CrovcaError, match=match):
        crovca.embed(photos, place, store, **settings)


def test_ids_are_seen_before_weights_are_loaded(photos, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(Encoder, "load", never)
    encoders._KEPT.clear()

    def check(ids):
        raise InvalidInputError(f"{len(ids)} ids")

    with pytest.raises(InvalidInputError, match="9 ids"):
        crovca.embed(photos, str(folders["ViT"][0]), tmp_path / "store", check=check)
    assert not (tmp_path / "store").exists()


def test_without_an_observer_the_log_hears_what_should_be_known(photos, folders, tmp_path, caplog):
    place = str(folders["ViT"][0])
    crovca.embed(photos, place, tmp_path / "store")
    with caplog.at_level(logging.INFO, "crovca"):
        crovca.embed(photos, place, tmp_path / "store")
    assert "1 of 1 parts are done already" in caplog.text


# --- blocks -----------------------------------------------------------------------------------------------------


def test_blocks_come_in_the_order_of_the_rows(photos, folders):
    tower = Encoder.load(folders["ViT"][0], device="cpu", dtype="float32")
    source = as_images(photos)
    broken = source.ids.tolist().index("a/broken.jpg")
    order = [7, 1, broken, 0, 3]
    blocks = list(embed_blocks(source, tower, np.array(order), batch_size=2, lanes=2))
    assert [block.rows for block in blocks] == [[7, 1], [0], [3]]
    assert [list(block.faults) for block in blocks] == [[], [broken], []]
    assert blocks[1].faults[broken][0] == "not an image"
    values = torch.cat([block.embeddings for block in blocks])
    assert values.shape == (4, tower.width)
    whole = {
        row: value
        for block in embed_blocks(source, tower)
        for row, value in zip(block.rows, block.embeddings, strict=True)
    }
    for row, value in zip([7, 1, 0, 3], values, strict=True):
        torch.testing.assert_close(value, whole[row], atol=1e-5, rtol=0)
    (views,) = embed_blocks(source, tower, [0, 1], views=3)
    assert views.embeddings.shape == (2, 3, tower.width)
    assert list(embed_blocks(source, tower, [])) == []
    assert next(iter(embed_blocks(source, tower, batch_size=1))).rows == [0]  # who stops early leaves no thread behind


def test_blocks_of_texts(folders):
    tower = TextEncoder.load(folders["CLIP"][0], device="cpu", dtype="float32")
    (block,) = embed_blocks(as_texts(["a b", "c"]), tower)
    torch.testing.assert_close(block.embeddings, tower.embed(["a b", "c"]))
    for wrong in ("", [1], None):
        with pytest.raises(CrovcaError):
            as_texts(wrong)


# --- encoders that are kept -------------------------------------------------------------------------------------


def test_an_encoder_is_loaded_once_until_its_files_change(folders, tmp_path):
    folder = shutil.copytree(folders["CLIP"][0], tmp_path / "clip")
    asked = {"device": "cpu", "dtype": "float32"}
    first = load_once(Encoder, folder, **asked)
    words = load_once(TextEncoder, folder, **asked)
    assert load_once(Encoder, str(folder), **asked) is first
    assert load_once(TextEncoder, folder, **asked) is words
    assert load_once(Encoder, folder, device="cpu", dtype="bfloat16") is not first
    first = load_once(Encoder, folder, **asked)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CrovcaError):
        load_once(Encoder, folder, **asked)
