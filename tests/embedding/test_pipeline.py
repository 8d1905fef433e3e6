"""Embedding jobs: the same bytes however a job was run, interrupted or shared out; broken items listed, never lost."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from crovca.cli.main import main
from crovca.data.embeddings import load_embeddings
from crovca.data.store import read_errors
from crovca.embedding import blocks, runners
from crovca.embedding.job import Job, Origin, begin_job
from crovca.embedding.pipeline import embed_shard, finish, make_worker, missing_shards, plan_job, summarize
from crovca.embedding.runners import Rank, find_rank, run_processes, run_ray
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.errors import ConfigError, CrovcaError, FileFormatError, InvalidInputError, WorkerError
from tests import patient_ray
from tests.needs import needs
from tests.pictures import as_bytes, broken_files, good_files, make_special, picture, write_all
from tests.started import Started

needs("transformers")
CLASSES = ("ant", "bee", "cat")
PER_CLASS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of small images, three of which are broken."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(CLASSES):
        files = {f"{name}/{i:02}.jpg": as_bytes(picture(100 * number + i)) for i in range(PER_CLASS)}
        write_all(root, files)
    write_all(root, {"ant/03.jpg": b"", "bee/bad.png": b"no image", "cat/zz.jpg": as_bytes(picture())[:200]})
    return root


@pytest.fixture(scope="module")
def vit(folders):
    return Encoder.load(folders["ViT"][0], device="cpu", dtype="float32"), str(folders["ViT"][0])


def job_of(source_path, encoder, modality="images", **settings):
    """A job and its worker."""
    tower, name = encoder
    origin = Origin(modality, str(source_path))
    source = origin.open()
    asked = {"v": 1, "seed": 0, "stored": "float16", "shard_size": 5, "batch_size": 3, "threads": 1, **settings}
    job = plan_job(origin, source, tower, name, None, asked)
    return job, make_worker(job, source, tower)


def embed_all(job, worker, store):
    job = begin_job(store, job)
    for shard in missing_shards(store, job):
        embed_shard(worker, store, shard)
    assert finish(store, job)
    return store


def content(store):
    """Every file of a store with its bytes."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def reference(photos, vit, tmp_path_factory):
    return embed_all(*job_of(photos, vit), tmp_path_factory.mktemp("reference") / "store")


def plain_embeddings(encoder, photos, ids):
    """The same by hand, item by item."""
    from crovca.sources.decode import decode

    rows = []
    for name in ids:
        image = decode((photos / name).read_bytes()).image
        pixels = torch.from_numpy(encoder.preprocessing.crop_image(image))[None]
        rows.append(encoder.embed(encoder.preprocessing.normalize(pixels)))
    return torch.cat(rows).numpy()


def test_a_store_holds_what_the_encoder_gives(reference, photos, vit):
    found = load_embeddings(reference)
    expected = [f"{name}/{i:02}.jpg" for name in CLASSES for i in range(PER_CLASS) if (name, i) != ("ant", 3)]
    assert found.ids.tolist() == expected
    assert found.labels.tolist() == [name.split("/")[0] for name in expected]
    assert found.values.dtype == np.float16
    assert np.allclose(found.values[:], plain_embeddings(vit[0], photos, expected), atol=2e-3)
    manifest = json.loads((reference / "manifest.json").read_text())
    assert [part["rows"] for part in manifest["parts"]] == [4, 5, 5, 5, 4, 5, 5, 2]
    assert (manifest["d"], manifest["v"], manifest["dtype"], manifest["batch_size"]) == (32, 1, "float16", 3)


def test_broken_items_are_listed_and_the_others_stay_aligned(reference, vit, photos):
    assert [(error.id, error.reason) for error in read_errors(reference)] == [
        ("ant/03.jpg", "empty"),
        ("bee/bad.png", "not an image"),
        ("cat/zz.jpg", "truncated"),
    ]
    found = summarize(reference, job_of(photos, vit)[0])
    assert (found.embedded, found.broken) == (35, {"empty": 1, "not an image": 1, "truncated": 1})
    assert found.finished


def test_the_same_job_gives_the_same_bytes(reference, photos, vit, tmp_path):
    job, worker = job_of(photos, vit)
    worker.decoders, worker.lanes = 5, 3
    assert content(embed_all(job, worker, tmp_path / "store")) == content(reference)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.starts
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(photos, vit, tmp_path, views):
    """kill -9 again and again, until a run comes through; each is given longer where the last one got nowhere."""
    job, worker = job_of(photos, vit, v=views, shard_size=2)
    expected = content(embed_all(job, worker, tmp_path / "whole"))
    draw, store = random.Random(views), tmp_path / "store"
    begin_job(store, job)
    killed, patience, left = 0, 0.12, None
    while missing := missing_shards(store, job):
        patience, left = patience * (1.5 if len(missing) == left else 1), len(missing)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                for shard in missing:  # slow enough for three kills at least
                    embed_shard(worker, store, shard, lambda _: time.sleep(0.02))
                os._exit(0)
            os._exit(1)
        time.sleep(draw.uniform(0, patience))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        if len(missing_shards(store, job)):
            with pytest.raises(FileFormatError, match="is unfinished"):
                load_embeddings(store)
            assert not finish(store, job)
    assert killed >= 3
    assert finish(store, job)
    assert content(store) == expected


@pytest.mark.slow
@pytest.mark.starts
def test_the_command_killed_and_given_again(photos, folders, tmp_path):
    """The same with the command itself, finished by two processes."""
    arguments = [
        "embed", photos, "--encoder", folders["ViT"][0], "--shard-size", "2", "--batch-size", "2", "--views", "3",
        "--dtype", "float32",
    ]  # fmt: skip
    store = tmp_path / "store"
    process = Started(["-m", "crovca.cli.main", *arguments, "--workers", "2", "-o", store])
    while not list(store.glob("part-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert list(store.glob("part-*")), said
    assert not (store / "manifest.json").exists()
    run(*arguments, "-o", store, "--workers", "2")
    run(*arguments, "-o", tmp_path / "whole")
    assert content(store) == content(tmp_path / "whole")


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 0


def refuses(capsys, *arguments, match, status=2):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(error) == 1, error
    assert match in error[0]
    assert exit_.value.code == status


# --- views ------------------------------------------------------------------------------------------------------


def test_views_do_not_depend_on_batches_and_shards(photos, vit, tmp_path):
    one = load_embeddings(embed_all(*job_of(photos, vit, v=3, stored="float32"), tmp_path / "one"))
    other = load_embeddings(
        embed_all(*job_of(photos, vit, v=3, stored="float32", shard_size=100, batch_size=8), tmp_path / "other")
    )
    assert one.values.shape == (35, 3, 32)
    assert np.allclose(one.values[:], other.values[:], atol=1e-5)  # the model's sums differ, the views do not
    seeded = load_embeddings(embed_all(*job_of(photos, vit, v=3, stored="float32", seed=1), tmp_path / "seeded"))
    assert not np.allclose(one.values[:], seeded.values[:], atol=1e-2)
    assert np.abs(one.values[:][:, 0] - one.values[:][:, 1]).max() > 1e-2


# --- runners ----------------------------------------------------------------------------------------------------


def test_ranks_share_the_shards_and_the_last_finishes(reference, photos, vit, tmp_path):
    job, worker = job_of(photos, vit)
    store = tmp_path / "store"
    finished = []
    for number in (2, 0, 1):
        job = begin_job(store, job)
        for shard in Rank(number, 3, 0).shards(missing_shards(store, job)):
            embed_shard(worker, store, shard)
        finished.append(finish(store, job))
    assert finished == [False, False, True]
    assert content(store) == content(reference)


def test_a_shard_that_another_has_written_meanwhile(reference, photos, vit, tmp_path):
    job, worker = job_of(photos, vit)
    begin_job(tmp_path / "store", job)
    embed_shard(worker, tmp_path / "store", 0)
    assert embed_shard(worker, tmp_path / "store", 0) == 4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(1, 4, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Rank(3, 8, 0)),
    ],
)
def test_ranks_of_launchers(environment, expected):
    assert find_rank(environment) == expected
    assert sorted(shard for n in range(4) for shard in Rank(n, 4, 0).shards(range(10))) == list(range(10))


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({}, "RANK and WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "lie in"),
    ],
)
def test_no_rank(environment, match):
    with pytest.raises(ConfigError, match=match):
        find_rank(environment)


def test_processes_end_with_the_error_of_one(photos, vit, tmp_path):
    job, _ = job_of(photos, vit)
    moved = Job(**{**job.__dict__, "fingerprint": "another"})
    with pytest.raises(WorkerError, match="changed since the job began") as found:
        run_processes(moved, tmp_path, [0, 1], lambda _: None, 1)
    assert found.value.exit_status == 2


def test_only_workers_on_processors_are_forks():
    """CUDA does not survive one."""
    assert runners._context("cuda").get_start_method() == "spawn"
    assert runners._context("cpu").get_start_method() == ("forkserver" if sys.platform == "linux" else "spawn")


@pytest.mark.ray
@pytest.mark.starts
def test_ray_gives_the_parts_of_the_local_run(photos, vit, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    job, worker = job_of(photos, vit, v=2, stored="float32")
    local = load_embeddings(embed_all(job, worker, tmp_path / "local"))
    store = tmp_path / "ray"
    begin_job(store, job)
    counted = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray._private import services

        for name, value in {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **patient_ray.ENVIRONMENT}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(services, "get_node", patient_ray.patient(services.get_node))
        paths = os.pathsep.join(path for path in sys.path if path)
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}}
        )
        try:
            run_ray(job, store, range(job.shards), counted.append, workers=2)
        finally:
            ray.shutdown()
    assert finish(store, job)
    assert sum(counted) == job.items
    found = load_embeddings(store)
    assert found.ids.tolist() == local.ids.tolist()
    assert np.abs(found.values[:] - local.values[:]).max() < 1e-4
    assert read_errors(store) == read_errors(tmp_path / "local")


# --- broken things ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")
def test_a_folder_of_fifty_kinds_of_broken_files(folders, tmp_path, capsys):
    files = broken_files()
    expected = {name: reason for name, (_, reason) in files.items()}
    write_all(tmp_path / "in", {name: data for name, (data, _) in files.items()})
    write_all(tmp_path / "in", good_files())
    expected |= make_special(tmp_path / "in")
    assert len(expected) > 50
    capsys.readouterr()
    run(
        "embed",
        tmp_path / "in",
        "--encoder",
        folders["ViT"][0],
        "-o",
        tmp_path / "store",
        "--json",
        "--shard-size",
        "7",
    )
    found = json.loads(capsys.readouterr().out)
    assert {error.id: error.reason for error in read_errors(tmp_path / "store")} == expected
    assert sum(found["broken"].values()) == len(expected)
    assert found["embedded"] == len(good_files())
    assert found["item_notes"] == {"animated: first frame": 1}
    assert sorted(load_embeddings(tmp_path / "store").ids) == sorted(good_files())


def test_a_part_in_which_nothing_can_be_read(vit, tmp_path):
    write_all(
        tmp_path / "in", {f"a{i}.jpg": b"" for i in range(6)} | {f"b{i}.jpg": as_bytes(picture(i)) for i in range(6)}
    )
    store = embed_all(*job_of(tmp_path / "in", vit, shard_size=4), tmp_path / "store")
    assert json.loads((store / "manifest.json").read_text())["parts"][0]["rows"] == 0
    assert load_embeddings(store).ids.tolist() == [f"b{i}.jpg" for i in range(6)]


def test_nothing_at_all_can_be_read(folders, tmp_path, capsys):
    write_all(tmp_path / "in", {f"{i}.jpg": b"x" * i for i in range(4)})
    refuses(capsys, "embed", tmp_path / "in", "--encoder", folders["ViT"][0], "-o", tmp_path / "store",
            match="none of the 4 images could be read (3 not an image, 1 empty)")  # fmt: skip
    with pytest.raises(FileFormatError, match="unfinished"):
        load_embeddings(tmp_path / "store")


def test_multi_hot_labels_stay_aligned(vit, tmp_path):
    write_all(tmp_path, {f"{i}.jpg": as_bytes(picture(i)) for i in range(10)} | {"3.jpg": b"", "0.jpg": b""})
    labels = np.random.default_rng(0).integers(0, 2, (10, 4))
    lines = [f"{i}.jpg {' '.join(map(str, row))}" for i, row in enumerate(labels)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = load_embeddings(embed_all(*job_of(tmp_path / "list.txt", vit, shard_size=3), tmp_path / "store"))
    keep = [i for i in range(10) if i not in (0, 3)]
    assert found.ids.tolist() == [f"{i}.jpg" for i in keep]
    assert np.array_equal(found.labels, labels[keep].astype(bool))


def test_an_encoder_that_gives_nan_for_some(photos, vit, tmp_path, monkeypatch):
    job, worker = job_of(photos, vit, batch_size=4)
    from crovca.errors import EncoderError

    whole = Encoder.embed
    first = worker.encoder.preprocessing.normalize(
        torch.from_numpy(blocks._prepare(worker.source, worker.encoder, 1, 5)[0])[None]
    )

    def embed(self, pixels):
        if (pixels == first).flatten(1).all(dim=1).any():
            raise EncoderError("not finite")
        return whole(self, pixels)

    monkeypatch.setattr(Encoder, "embed", embed)
    store = embed_all(job, worker, tmp_path / "store")
    assert [error.id for error in read_errors(store) if error.reason == "not finite"] == ["ant/05.jpg"]
    assert len(load_embeddings(store)) == 34


def test_numbers_beyond_float16_are_refused(photos, vit, tmp_path, monkeypatch):
    whole = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, pixels: whole(self, pixels) * 1e6)
    job, worker = job_of(photos, vit)
    with pytest.raises(InvalidInputError, match=r"'ant/0\d.jpg' holds [\d,]+, beyond float16 .* --stored float32"):
        embed_all(job, worker, tmp_path / "store")
    assert load_embeddings(embed_all(*job_of(photos, vit, stored="float32"), tmp_path / "wide")).values[:].max() > 1e5


def test_a_folder_that_may_not_be_written(photos, vit, tmp_path, monkeypatch):
    from crovca.data import store as stores

    job, worker = job_of(photos, vit)
    begin_job(tmp_path / "store", job)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.np, "save", full)
    with pytest.raises(CrovcaError, match="No space left on device; nothing was written"):
        embed_shard(worker, tmp_path / "store", 0)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["job.json"]
    assert content(embed_all(job, worker, tmp_path / "store"))


def test_a_damaged_part_is_made_again(reference, photos, vit, tmp_path):
    store = shutil.copytree(reference, tmp_path / "store")
    (store / "part-00002" / "embeddings.npy").write_bytes(b"")
    shutil.rmtree(store / "part-00004")
    job, worker = job_of(photos, vit)
    assert missing_shards(store, job) == [2, 4]
    assert content(embed_all(job, worker, store)) == content(reference)


# --- the command ------------------------------------------------------------------------------------------------


def test_embed_then_train_encode_evaluate(photos, folders, tmp_path, capsys):
    store = tmp_path / "store"
    arguments = ["embed", photos, "--encoder", folders["ViT"][0], "-o", store, "--views", "2", "--shard-size", "9"]
    run(*arguments)
    assert "35 of 39 images embedded" not in capsys.readouterr().out
    run("train", store, "--bits", "8", "--epochs", "1", "-o", tmp_path / "model")
    run("embed", photos, "--encoder", folders["ViT"][0], "-o", tmp_path / "plain")
    printed = capsys.readouterr().out
    assert "35 of 38 images embedded, 32 numbers in float16" in printed
    assert "left out: 3 (1 empty, 1 not an image, 1 truncated)" in printed
    run("encode", tmp_path / "model", tmp_path / "plain", "-o", tmp_path / "codes.npz")
    run("evaluate", tmp_path / "model", "--database", tmp_path / "plain", "--query", tmp_path / "plain")
    before = content(store)
    capsys.readouterr()
    run(*arguments, "--json")  # nothing is missing: nothing is done
    assert json.loads(capsys.readouterr().out)["items_now"] == 0
    assert content(store) == before


def test_ctrl_c_says_how_to_go_on(photos, folders, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runners, "embed_shard", interrupt)
    refuses(capsys, "embed", photos, "--encoder", folders["ViT"][0], "-o", tmp_path / "store",
            match="interrupted; the same command without --force goes on", status=130)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (["--views", "3"], "another --views: 1, now 3"),
        (["--seed", "1"], "another --seed: 0, now 1"),
        (["--batch-size", "4"], "another --batch-size: 2, now 4"),
        (["--shard-size", "4"], "another --shard-size: 9, now 4"),
        (["--stored", "float32"], "another --stored: float16, now float32"),
        (["--dtype", "bfloat16"], "another --dtype: float32, now bfloat16"),
        (["--threads", "2"], "another --threads: 1, now 2"),
        (["--resize-rounding", "nearest"], "another preprocessing"),
    ],
)
def test_other_settings_are_refused(photos, folders, tmp_path_factory, capsys, changed, match):
    store = tmp_path_factory.getbasetemp() / "settings"
    settings = {"--shard-size": "9", "--batch-size": "2", "--dtype": "float32"}
    given = [text for pair in settings.items() for text in pair]
    arguments = ["embed", photos, "--encoder", folders["ViT"][0], "-o", store]
    if not store.exists():
        run(*arguments, *given)
    before = content(store)
    refuses(capsys, *arguments, *given, *changed, match=match)
    assert content(store) == before


def test_another_source_or_encoder_is_refused_and_force_begins_anew(photos, folders, tmp_path, capsys):
    mine = shutil.copytree(photos, tmp_path / "mine")
    arguments = ["embed", mine, "--encoder", folders["ViT"][0], "-o", tmp_path / "store", "--dtype", "float32"]
    run(*arguments)
    (mine / "ant" / "99.jpg").write_bytes(as_bytes(picture(5)))
    refuses(capsys, *arguments, match="another content of the source")
    (mine / "ant" / "99.jpg").unlink()
    other = ["embed", mine, "--encoder", folders["DeiT"][0], "-o", tmp_path / "store", "--dtype", "float32"]
    refuses(capsys, *other, match="begun with another")
    before = content(tmp_path / "store")
    refuses(capsys, *other[:3], tmp_path / "nothing", *other[4:], "--force", match="nothing")
    assert content(tmp_path / "store") == before  # an encoder that is not there costs nobody a store
    run(*other, "--force")
    assert content(tmp_path / "store") != before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give either IMAGES or --texts"),
        (["in", "--texts", "t.txt"], "give either IMAGES or --texts"),
        (["in"], "give --encoder"),
        (["in", "--encoder", "VIT", "--batch-size", "0"], "--batch-size must be a whole number"),
        (["in", "--encoder", "VIT", "--views", "0"], "--views must be at least 1"),
        (["in", "--encoder", "VIT", "--workers", "0"], "--workers must be at least 1"),
        (["in", "--encoder", "VIT", "--runner", "rank"], "--runner rank needs RANK"),
        (["none", "--encoder", "VIT"], "none does not exist"),
        (["in", "--encoder", "VIT", "-o", "in"], "in would replace the input in"),
        (["in", "--encoder", "VIT", "-o", "in", "--force"], "in would replace the input in"),
        (["in", "--encoder", "VIT", "-o", "other", "--force"], "other is a folder of something else"),
        (["in/0.jpg", "--encoder", "VIT"], "a single image"),
        (["void", "--encoder", "VIT"], "void holds no image"),
        (["in", "--encoder", "VIT", "--root", "in"], "a root goes with a split file"),
    ],
)
def test_bad_arguments(folders, tmp_path, monkeypatch, capsys, arguments, match):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    write_all(tmp_path, {"in/0.jpg": as_bytes(picture()), "other/file": b"x", "void/note.doc": b"x"})
    monkeypatch.chdir(tmp_path)
    given = [str(folders["ViT"][0]) if text == "VIT" else text for text in arguments]
    if "-o" not in given:
        given += ["-o", "store"]
    refuses(capsys, "embed", *given, match=match)
    assert not Path("store").exists()
    assert Path("in/0.jpg").exists()
    assert Path("other/file").exists()


def test_texts_of_every_kind_give_the_same_rows(folders, tmp_path):
    clip = TextEncoder.load(folders["CLIP"][0], device="cpu", dtype="float32"), str(folders["CLIP"][0])
    (tmp_path / "t.txt").write_text("a b\nb c\n\nc a b\n", encoding="utf-8")
    found = embed_all(*job_of(tmp_path / "t.txt", clip, "texts", stored="float32"), tmp_path / "store")
    data = load_embeddings(found)
    assert data.ids.tolist() == [0, 1, 3]
    assert [(error.id, error.reason) for error in read_errors(found)] == [(2, "empty")]
    assert np.allclose(data.values[:], clip[0].embed(["a b", "b c", "c a b"]).numpy(), atol=1e-5)
    # the captions of a store, its ids kept: rows of two modalities stay pairs
    again = load_embeddings(embed_all(*job_of(found, clip, "texts", stored="float32"), tmp_path / "again"))
    assert again.ids.tolist() == data.ids.tolist()
    assert np.allclose(again.values[:], data.values[:], atol=1e-5)
