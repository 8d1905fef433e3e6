"""``crovca datasets`` as a user gives it."""

import json

import numpy as np
import pytest

from crovca.cli.main import main
from crovca.datasets import PROTOCOLS, registry
from tests.datasets.copies import write_coco, write_flickr25k, write_imagenet100, write_nuswide21
from tests.datasets.test_cifar10 import SMALL, write_binary


@pytest.fixture
def run(capsys):
    """Run ``crovca datasets``: its exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["datasets", *map(str, arguments)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of small datasets, and protocols of their size."""
    writers = {
        "coco": write_coco,
        "flickr25k": write_flickr25k,
        "nuswide21": write_nuswide21,
        "imagenet100": write_imagenet100,
    }
    small = {name: write(tmp_path / "data" / name) for name, write in writers.items()}
    write_binary(tmp_path / "data/cifar10/cifar-10-batches-bin")
    protocols = {**PROTOCOLS, **small, "cifar10": SMALL}
    monkeypatch.setattr(registry, "PROTOCOLS", protocols)
    monkeypatch.delenv("CROVCA_DEBUG", raising=False)
    return tmp_path / "data"


def test_every_dataset_is_listed(run):
    code, out, _ = run()
    assert code == 0
    assert all(name in out for name in PROTOCOLS)
    code, out, _ = run("--json")
    rows = {row["name"]: row for row in json.loads(out)["datasets"]}
    assert set(rows) == set(PROTOCOLS)
    assert rows["coco"]["counts"] == {"train": 10_000, "database": 117_218, "query": 5_000}
    assert rows["coco"]["k"] == 5000


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_dataset_says_where_it_is_to_be_had(run, name):
    code, out, _ = run(name)
    assert code == 0
    for source in PROTOCOLS[name].sources:
        assert f"{source.path}{'' if source.needed else ' (optional)'}  {source.url}" in out
    assert ("checksums: none are published" in out) == (name != "cifar10")
    assert json.loads(run(name, "--json")[1])["found"] is None


def test_what_lies_below_a_folder(run, data):
    (data / "coco/database.txt").unlink()
    code, out, err = run("--data", data)
    assert (code, err) == (0, "")
    assert "train 100, database 100, query 20" in out
    states = {row["name"]: row for row in json.loads(run("--data", data, "--json")[1])["datasets"]}
    assert {name: row["state"] for name, row in states.items() if row["state"] != "absent"} == {
        "cifar10": "found", "flickr25k": "found", "nuswide21": "found", "imagenet100": "found",
        "coco": "unusable", "coco-text": "unusable",
        "coco-ddbh": "unusable", "flickr25k-ddbh": "unusable", "nuswide21-ddbh": "unusable",
    }  # fmt: skip
    assert "database.txt is missing" in states["coco"]["problem"]
    assert states["imagenet1k"]["folder"] == str(data / "imagenet1k")


def test_one_dataset_is_checked_and_its_splits_written(run, data, tmp_path):
    code, out, err = run("imagenet100", "--data", data, "--splits", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "complete" in out
    assert (tmp_path / "out/query.txt").read_text().splitlines()[1].endswith("val_00000001.JPEG 1")
    found = json.loads(run("coco", "--folder", data / "coco", "--json")[1])["found"]
    assert found["splits"]["query"] == {"items": 2, "captions": 4}
    code, out, err = run("imagenet100", "--data", data, "--splits", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert run("imagenet100", "--data", data, "--splits", tmp_path / "out", "--force")[0] == 0


def test_rebuild_and_pin(run, data):
    (data / "nuswide21/database.txt").unlink()
    code, _, err = run("nuswide21", "--data", data)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "--rebuild" in err
    code, out, _ = run("nuswide21", "--data", data, "--rebuild", "--pin")
    assert code == 0
    assert "written (rebuild)" in out
    (data / "nuswide21/test.txt").write_text("")
    code, _, err = run("nuswide21", "--data", data)
    assert code == 2
    assert "sha256 checksum" in err


def test_cifar10_is_exported(run, data, tmp_path):
    code, out, err = run("cifar10", "--data", data, "--export", tmp_path / "png", "--splits", tmp_path / "s")
    assert (code, err) == (0, "")
    assert f"found in {tmp_path / 'png'}, complete" in out
    assert len(list((tmp_path / "png").rglob("*.png"))) == 120
    paths = [line.split()[0] for line in (tmp_path / "s/database.txt").read_text().splitlines()]
    assert all((tmp_path / "png" / path).is_file() for path in paths)
    code, _, err = run("cifar10", "--data", data, "--splits", tmp_path / "t")
    assert code == 0
    assert "note: the images are in an archive" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist"], "there is no dataset 'mnist'"),
        (["mnist", "--data", "."], "there is no dataset 'mnist'"),
        (["coco", "--data", "none"], "there is no folder none"),
        (["--data", "none"], "there is no folder none"),
        (["coco", "--data", ".", "--folder", "."], "give either --data"),
        (["coco", "--pin"], "say where the dataset is"),
        (["--splits", "x"], "go with the NAME"),
        (["coco", "--folder", ".", "--export", "x"], "--export is for cifar10"),
        (["flickr30k", "--folder", ".", "--rebuild"], "cannot be rebuilt"),
        (["cc3m", "--folder", "none"], "there is no folder none"),
    ],
)
def test_refusals_are_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_exported_splits_are_read_by_their_rule(run, data, tmp_path):
    """A number is a class, several columns are several labels; both are what 'crovca embed' takes."""
    run("coco", "--data", data, "--splits", tmp_path / "coco")
    run("cifar10", "--data", data, "--splits", tmp_path / "cifar10")
    rows = [line.split()[1:] for line in (tmp_path / "coco/train.txt").read_text().splitlines()]
    assert np.array(rows).shape == (4, 4)
    rows = [line.split()[1:] for line in (tmp_path / "cifar10/train.txt").read_text().splitlines()]
    assert np.array(rows).shape == (100, 1)
