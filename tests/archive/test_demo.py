"""The demo's archive: pictures of digits that are searched by pictures, before anybody has a model."""

import pytest

from crovca import HashIndex
from crovca.archive.archive import Archive
from crovca.archive.demo_archive import check_demo_archive, write_demo_archive
from crovca.archive.queries import QueryModel
from crovca.errors import OutputExistsError
from tests.needs import needs

needs("transformers")


@pytest.mark.slow
def test_a_digit_finds_its_like(tmp_path):
    path = tmp_path / "digits"
    assert write_demo_archive(path) == 1797
    archive = Archive.open(path)
    asked = [archive.root / f"{name}" for name in ("zero/0000.png", "one/0001.png", "six/0006.png")]
    with HashIndex.open(archive.index) as index:
        model = QueryModel.of_index(archive.index, index.encoder, device="cpu")
        logits = model.of_embeddings(model.embed_images(asked))
        found = index.search(logits, k=10).ids
    assert [row[0] for row in found] == ["zero/0000.png", "one/0001.png", "six/0006.png"]
    for row, digit in zip(found, ("zero", "one", "six"), strict=True):
        assert sum(id.startswith(digit) for id in row) >= 7
    with pytest.raises(OutputExistsError, match="--force"):
        check_demo_archive(path, force=False)
    assert check_demo_archive(path, force=True) == tmp_path / "digits-digits"


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "digits-digits").mkdir()
    (tmp_path / "digits-digits" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="something else"):
        write_demo_archive(tmp_path / "digits", force=True)
    assert (tmp_path / "digits-digits" / "mine.txt").read_text() == "mine"
