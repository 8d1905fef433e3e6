"""The workspace: everything is made once, goes on where it stopped, and never passes for something else."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest

from crovca.errors import ConfigError, FileFormatError
from crovca.hasher import Hasher
from crovca.reproduce import inputs as materials
from crovca.reproduce import workspace as labs
from crovca.reproduce.workspace import Workspace
from tests.reproduce import copies

SHORT = {"epochs": 1, "batch_size": 4}


@dataclass(frozen=True)
class Training:
    encoder: str = "dinov2"
    dataset: str = "flickr25k"
    setting: str = "unsupervised"
    fitting: str = "lora"
    bits: int = 16
    preset: str = "small"


@pytest.fixture
def make(benchmarks, dino, tmp_path):
    """Makes labs on one work folder."""
    data, protocols = benchmarks

    def workspace(**changes):
        known = {"weights": {"dinov2": str(dino)}, "training": SHORT, "protocols": protocols}
        return Workspace(data, tmp_path / "work", **{"device": "cpu", **known, **changes})

    return workspace


def never(*_, **__):
    raise AssertionError("done a second time")


def test_every_benchmark_gives_images_with_labels(make):
    workspace = make()
    for name in copies.WRITERS:
        source = workspace.source(name, "database")
        found = workspace.dataset(name).splits["database"]
        assert source.ids.tolist() == found.paths.tolist()
        np.testing.assert_array_equal(source.labels, found.labels)
        assert source.read(0).startswith(b"\x89PNG")
        assert (workspace.work / "splits" / name / "database.txt").exists()


def test_the_archive_of_cifar10_is_written_as_files_once(make, tmp_path, monkeypatch):
    data = tmp_path / "archived"
    protocols = copies.write(data, ["cifar10"], cifar10=copies.write_cifar10_archive)
    workspace = make(protocols=protocols)
    workspace.data = data
    assert len(workspace.source("cifar10", "train")) == 20
    assert len(workspace.embeddings("dinov2", "cifar10", "query")) == 2
    assert workspace.split("cifar10", "train")[0] == "database"  # the same images: embedded once
    monkeypatch.setattr(materials, "export_cifar10", never)
    again = make(protocols=protocols)
    again.data = data
    assert len(again.source("cifar10", "query")) == 2


def test_embeddings_are_those_of_the_encoder_and_made_once(make, dino, monkeypatch):
    from crovca.encoders.encoder import Encoder

    workspace = make()
    found = workspace.embeddings("dinov2", "coco", "database")
    assert found.ids.tolist() == workspace.source("coco", "database").ids.tolist()
    assert found.labels.shape == (10, 4)
    assert found.values.dtype == np.float32
    encoder = Encoder.load(dino, device="cpu")
    from crovca.sources.decode import decode

    image = decode(workspace.source("coco", "database").read(3)).image
    pixels = encoder.preprocessing.crop_image(image, image.size)
    import torch

    expected = encoder.embed(encoder.preprocessing.normalize(torch.from_numpy(pixels)[None]))
    np.testing.assert_allclose(found.values[3:4], expected, atol=2e-2)  # bfloat16 depends on the batch
    monkeypatch.setattr(Encoder, "load", never)
    np.testing.assert_array_equal(make().embeddings("dinov2", "coco", "database").values[:], found.values[:])


def test_an_embedding_that_was_killed_goes_on(make, monkeypatch):
    from crovca.embedding import pipeline

    monkeypatch.setitem(pipeline._SHARD_SIZES, "cpu", 4)
    whole = make(weights=make().weights)
    reference = whole.embeddings("dinov2", "cifar10", "database").values[:]
    store = whole.work / "embeddings" / "dinov2" / "cifar10" / "database"
    (store / "manifest.json").unlink()
    kept = (store / "part-00000" / "embeddings.npy").stat().st_mtime_ns
    shutil.rmtree(store / "part-00002")
    assert (make().embeddings("dinov2", "cifar10", "database").values[:] == reference).all()
    assert (store / "part-00000" / "embeddings.npy").stat().st_mtime_ns == kept


@pytest.mark.parametrize("fitting", ["lora", "probing"])
@pytest.mark.parametrize("setting", ["unsupervised", "supervised"])
def test_codes_are_the_models_own(make, fitting, setting, monkeypatch):
    workspace = make()
    training = Training(setting=setting, fitting=fitting)
    found = workspace.encoded(training, 0, "coco", "database")  # transfer: another dataset than it is trained on
    folder = workspace.work / "models" / workspace.name_of(training) / "seed-0"
    assert "epochs=1" in folder.parent.name
    hasher = Hasher.load(folder, device="cpu")
    assert (hasher.fine_tuning.lora_rank is None) == (fitting == "probing")
    assert (hasher.hashcoder, hasher.prototypes, hasher.lengths_) == ("small", "batch", (16,))
    assert (hasher.classes_ is None) == (setting == "unsupervised")
    source = workspace.source("coco", "database")
    np.testing.assert_allclose(found.logits, hasher.logits(source), atol=0.2)
    assert np.corrcoef(found.logits.ravel(), hasher.logits(source).ravel())[0, 1] > 0.99
    assert found.ids.tolist() == source.ids.tolist()
    assert not list(workspace.work.rglob("*.partial"))
    monkeypatch.setattr(labs.Hasher, "load", never)
    monkeypatch.setattr(labs.Hasher, "fit", never)
    np.testing.assert_array_equal(make().encoded(training, 0, "coco", "database").logits, found.logits)


def test_codes_in_parts_go_on(make, monkeypatch):
    training = Training()
    whole = make().encoded(training, 0, "cifar10", "database")
    path = make().work / "codes" / make().name_of(training) / "seed-0" / "cifar10-database.npz"
    path.unlink()
    monkeypatch.setattr(labs, "_PART", 8)
    done = []
    encode = labs.Hasher.encode_source

    def dies(self, images, **more):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(images))
        return encode(self, images, **more)

    monkeypatch.setattr(labs.Hasher, "encode_source", dies)
    with pytest.raises(KeyboardInterrupt):
        make().encoded(training, 0, "cifar10", "database")
    assert not path.exists()
    rest = []
    monkeypatch.setattr(
        labs.Hasher,
        "encode_source",
        lambda self, images, **more: rest.append(len(images)) or encode(self, images, **more),
    )
    again = make().encoded(training, 0, "cifar10", "database")
    assert (done, rest) == ([8, 8], [8, 6])
    assert again.ids.tolist() == whole.ids.tolist()
    assert again.labels.tolist() == whole.labels.tolist()
    np.testing.assert_allclose(again.logits, whole.logits, atol=0.2)


def test_a_random_hashcoder_is_balanced_on_the_training_set(make):
    workspace = make()
    training = Training(setting="random", dataset="cifar10", fitting="probing")
    logits = workspace.encoded(training, 0, "cifar10", "train").logits
    np.testing.assert_allclose(logits.mean(axis=0), 0, atol=1e-4)
    other = workspace.encoded(training, 1, "cifar10", "train").logits
    assert not np.allclose(logits, other)
    shortened = make(training={"epochs": 3})
    assert shortened.name_of(training) == workspace.name_of(training)  # nothing is trained, so nothing is shortened


def test_a_model_with_an_encoder_in_it_has_no_random_form(dino):
    with pytest.raises(ConfigError, match="takes embeddings: use a Hasher without an encoder"):
        Hasher.for_images(dino, 16).initialize(np.ones((4, 32)))


def test_the_statistics_of_a_large_training_set_are_those_of_a_sample(make, monkeypatch):
    monkeypatch.setattr(materials, "_SAMPLE", 5)
    workspace = make()
    assert len(workspace.source("imagenet1k", materials.STATISTICS)) == 5
    assert len(workspace.source("coco", materials.STATISTICS)) == 4  # all four
    assert set(workspace.source("imagenet1k", materials.STATISTICS).labels) == {0, 1, 2, 3}


def test_nested_trains_one_model_for_all_lengths(make):
    workspace = make(nested=True)
    short, long = (workspace.encoded(Training(bits=bits), 0, "coco", "query") for bits in (16, 64))
    assert (short.codes.bits, long.codes.bits) == (16, 64)
    np.testing.assert_array_equal(short.logits, long.logits[:, :16])
    assert len(list((workspace.work / "models").iterdir())) == 1


def test_training_that_was_interrupted_goes_on(make, monkeypatch):
    fit = labs.Hasher.fit
    monkeypatch.setattr(labs.Hasher, "fit", lambda *args, **more: fit(*args, checkpoint_seconds=0, **more))
    steps = []

    class Watching:
        last = 20

        def advance(self, stage, share): ...
        def message(self, text): ...

        def progress(self, state):
            steps.append(state.step)
            if state.step >= self.last:
                raise KeyboardInterrupt

    watching = Watching()
    settings = {"training": {"epochs": 30, "batch_size": 4}, "observer": watching}
    with pytest.raises(KeyboardInterrupt):
        make(**settings).model(Training(), 0)
    (partial,) = make().work.rglob("*.partial")
    assert (partial / "state.safetensors").exists()
    seen, watching.last = list(steps), 99
    make(**settings).model(Training(), 0)
    assert seen == [10, 20]
    assert steps[2:] == [20, 30]  # from step 19 on
    assert not partial.exists()


def test_what_cannot_be_read_is_counted(make, tmp_path, dino):
    data = tmp_path / "data"
    protocols = copies.write(data, ["flickr25k"])
    (data / "flickr25k" / "mirflickr" / "im9.jpg").write_bytes(b"")
    workspace = make(protocols=protocols)
    workspace.data = data
    assert len(workspace.embeddings("dinov2", "flickr25k", "database")) == 5
    assert workspace.left_out == {"flickr25k/database": {"empty": 1}}
    again = make(protocols=protocols)
    again.data = data
    found = again.encoded(Training(), 0, "flickr25k", "database")
    assert "mirflickr/im9.jpg" not in found.ids.tolist()
    assert again.left_out == {"flickr25k/database": {"empty": 1}}


def test_work_refuses_other_data(make, tmp_path):
    make().source("flickr25k", "query")
    data = tmp_path / "data"
    protocols = copies.write(data, ["flickr25k"])
    lines = (data / "flickr25k" / "test.txt").read_text().splitlines()
    (data / "flickr25k" / "test.txt").write_text("\n".join(lines[::-1]) + "\n")
    workspace = make(protocols=protocols)
    workspace.data = data
    with pytest.raises(ConfigError, match=r"'query' than .* was begun with .*; give another --work"):
        workspace.source("flickr25k", "query")


REFUSED = r"was begun with other weights of dinov2 \(.*\); give the same again or another --work"


def test_work_refuses_other_weights(make, other_dino, tmp_path):
    workspace = make()
    workspace.embeddings("dinov2", "coco", "query")
    moved = tmp_path / "moved"
    shutil.copytree(workspace.weights["dinov2"], moved)
    assert len(make(weights={"dinov2": str(moved)}).embeddings("dinov2", "coco", "query")) == 2
    other = make(weights={"dinov2": str(other_dino)})
    for split in ("query", "database"):  # a store of theirs, and a new one beside it
        with pytest.raises(ConfigError, match=REFUSED):
            other.embeddings("dinov2", "coco", split)


@pytest.mark.parametrize(
    "training",
    [Training(), Training(fitting="probing"), Training(setting="random", fitting="probing")],
    ids=["lora", "probing", "random"],
)
def test_models_and_codes_are_not_mixed_with_other_weights(make, other_dino, tmp_path, training):
    workspace = make()
    before = workspace.encoded(training, 0, "coco", "query")
    other = make(weights={"dinov2": str(other_dino)})
    for dataset in ("coco", "flickr25k"):  # codes that are kept, and new ones of the model that is kept
        with pytest.raises(ConfigError, match=REFUSED):
            other.encoded(training, 0, dataset, "query")
    with pytest.raises(ConfigError, match=REFUSED):
        other.model(training, 0)
    moved = tmp_path / "moved"
    shutil.copytree(workspace.weights["dinov2"], moved)
    again = make(weights={"dinov2": str(moved)}).encoded(training, 0, "coco", "query")
    np.testing.assert_array_equal(again.logits, before.logits)


def test_a_folder_of_weights_that_changed_is_another(make, dino, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(dino, folder)
    weights = {"dinov2": str(folder)}
    make(weights=weights).encoded(Training(), 0, "coco", "query")
    copies.with_other_weights(dino, folder)
    changed = make(weights=weights)
    with pytest.raises(ConfigError, match=REFUSED):
        changed.encoded(Training(), 0, "coco", "query")
    with pytest.raises(ConfigError, match=REFUSED):
        changed.embeddings("dinov2", "coco", "query")


def test_codes_outlive_the_folder_of_their_weights(make, dino, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(dino, folder)
    weights = {"dinov2": str(folder)}
    before = make(weights=weights).encoded(Training(), 0, "coco", "query")
    shutil.rmtree(folder)
    after = make(weights=weights).encoded(Training(), 0, "coco", "query")
    np.testing.assert_array_equal(before.logits, after.logits)


def test_an_id_of_the_hub_is_known_by_its_name(make, monkeypatch):
    workspace = make()
    before = workspace.encoded(Training(), 0, "coco", "query")
    note = json.loads((workspace.work / materials.WEIGHTS).read_text())
    note["encoders"]["dinov2"]["source"] = "somebody/some-dinov2"
    (workspace.work / materials.WEIGHTS).write_text(json.dumps(note))
    monkeypatch.setattr(materials, "locate", never)  # nothing is fetched for codes that are there
    after = make(weights={"dinov2": "somebody/some-dinov2"}).encoded(Training(), 0, "coco", "query")
    np.testing.assert_array_equal(before.logits, after.logits)
    with pytest.raises(AssertionError, match="done a second time"):  # another id is looked into
        make(weights={"dinov2": "somebody/another"}).encoded(Training(), 0, "coco", "query")


def test_weights_that_could_not_be_loaded_bind_nothing(make, dino, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(dino, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])  # as a download that was cut leaves it
    weights = {"dinov2": str(folder)}
    for ask in (
        lambda workspace: workspace.embeddings("dinov2", "coco", "query"),
        lambda workspace: workspace.encoded(Training(), 0, "coco", "query"),
    ):
        with pytest.raises(FileFormatError):
            ask(make(weights=weights))
    (folder / "model.safetensors").write_bytes(whole)
    assert len(make(weights=weights).encoded(Training(), 0, "coco", "query")) == 2


def test_a_damaged_note_of_the_weights_is_refused(make):
    workspace = make()
    workspace.embeddings("dinov2", "coco", "query")
    (workspace.work / materials.WEIGHTS).write_text('{"format_version": 1, "encoders": {"dinov2": 3}}')
    with pytest.raises(FileFormatError, match=r"weights\.json .*damaged"):
        make().embeddings("dinov2", "coco", "query")


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda workspace: workspace.dataset("mnist"), ConfigError, "known are cifar10"),
        (lambda workspace: workspace.source("coco", "test"), ConfigError, "it has train, database, query"),
        (lambda workspace: workspace.encoder("resnet"), ConfigError, "no encoder 'resnet'; known are dinov2"),
        (lambda workspace: workspace.encoder("simdinov2"), ConfigError, "crovca convert .*--weights simdinov2=FOLDER"),
    ],
)
def test_messages(make, ask, error, message):
    with pytest.raises(error, match=message):
        ask(make())


def test_settings_and_encoders_must_be_known(tmp_path):
    with pytest.raises(ConfigError, match="unknown setting 'bits'"):
        Workspace(tmp_path, tmp_path, training={"bits": 3})
    with pytest.raises(ConfigError, match="unknown encoder 'x'"):
        Workspace(tmp_path, tmp_path, weights={"x": "y"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"epochs": 0}}, "epochs must be a whole number of at least 1, got 0"),
        ({"training": {"batch_size": 1}}, "batch_size must be a whole number of at least 2, got 1"),
        ({"training": {"learning_rate": 0}}, "learning_rate must be greater than 0"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"dtype": "foo"}, "dtype must be 'auto' or one of .*, got 'foo'"),
    ],
)
def test_settings_are_checked_before_anything_runs(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        Workspace(tmp_path, tmp_path / "work", **settings)
    assert not (tmp_path / "work").exists()


def test_the_data_must_be_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere; give the folder of the datasets"):
        Workspace(tmp_path / "nowhere", tmp_path / "work")


def test_a_missing_dataset_says_where_to_get_it(make, tmp_path):
    workspace = make()
    workspace.data = tmp_path / "nowhere"
    with pytest.raises(FileFormatError, match=r"no folder .*nowhere.flickr25k; get"):
        workspace.source("flickr25k", "query")
