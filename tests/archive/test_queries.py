"""Queries take the way of what is searched; the encoder is loaded when it is needed, and once."""

import numpy as np
import pytest

import crovca
from crovca.archive.queries import QueryModel, describe_encoder
from crovca.encoders import encoder as encoders
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.errors import FileFormatError
from crovca.hasher import Hasher
from tests.needs import needs
from tests.pictures import as_bytes, picture, write_all

needs("transformers")


@pytest.fixture(scope="module")
def archive(folders, tmp_path_factory):
    """Photographs, and what an index of them keeps."""
    root = tmp_path_factory.mktemp("archive")
    write_all(root / "photos", {f"{number}.png": as_bytes(picture(number)) for number in range(12)})
    write_all(root, {"broken.png": b"no image"})
    found = crovca.embed(root / "photos", str(folders["CLIP"][0]), root / "store", dtype="float32", stored="float32")
    hasher = Hasher(bits=8, epochs=1).fit(found.embeddings.values[:])
    return root, hasher, describe_encoder(found.job.to_dict()), found.embeddings.values[:]


def test_an_image_loads_the_image_tower_alone_and_once(archive, monkeypatch):
    root, hasher, described, values = archive
    loaded = []
    load = Encoder.load
    monkeypatch.setattr(Encoder, "load", lambda source, **options: loaded.append(source) or load(source, **options))
    monkeypatch.setattr(TextEncoder, "load", lambda *_, **__: pytest.fail("the text tower was loaded"))
    encoders._KEPT.clear()
    files = [root / "photos" / f"{number}.png" for number in (3, 11)]
    for _ in range(2):  # a second model of the same index, as of the next request
        model = QueryModel(hasher, described, device="cpu")
        assert model.of_embeddings(values[:1]).shape == (1, 8)
        assert not loaded or len(loaded) == 1
        for _ in range(2):
            rows = [sorted(f"{number}.png" for number in range(12)).index(file.name) for file in files]
            np.testing.assert_allclose(
                model.of_embeddings(model.embed_images(files)), hasher.logits(values[rows]), atol=1e-4
            )
    assert len(loaded) == 1


def test_an_image_that_cannot_be_read_is_named(archive):
    root, hasher, described, _ = archive
    model = QueryModel(hasher, described, device="cpu")
    with pytest.raises(FileFormatError, match=r"broken\.png: not an image"):
        model.embed_images([root / "photos" / "1.png", root / "broken.png"])
