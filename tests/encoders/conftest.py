"""Folders of small models, made once, and the real photographs where there are any."""

from pathlib import Path

import pytest

from tests.encoders import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name of a family -> (folder, width). Nobody writes into them."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("encoders")
    found = {}
    for name, (model, processor, width) in tiny.models().items():
        found[name] = tiny.save(model, root / name.replace(" ", "_"), processor), width
    tiny.clip_tokenizer(found["CLIP"][0])
    tiny.word_tokenizer(found["SigLIP"][0])
    return found


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and models beside the repository."""
    folder = Path(__file__).parents[3] / "shared"
    if not (folder / "data" / "caltech100" / "images").is_dir():
        pytest.skip(f"needs the real photographs of {folder / 'data'}")
    return folder
