import json
import shutil
import signal
import time

import numpy as np
import pytest

from crovca.cli.main import main
from crovca.data.encoded import Encoded
from crovca.hasher import Hasher
from tests.started import Started

FINETUNE = ["-m", "crovca.cli.main", "finetune"]


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def finetune(capsys, photos, encoder, output, *more):
    options = ["--encoder", encoder, "--bits", "16", "--epochs", "2", "--batch-size", "12", "--device", "cpu"]
    return run(capsys, "finetune", photos, *options, "-o", output, *more)


@pytest.fixture(scope="module")
def model(tmp_path_factory, encoder, photos):
    folder = tmp_path_factory.mktemp("cli") / "model"
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(photos), "--encoder", str(encoder), "--bits", "16", "--epochs", "2", "--batch-size", "12",
              "--dtype", "float32", "--device", "cpu", "--supervised", "-o", str(folder)])  # fmt: skip
    assert ended.value.code == 0
    return folder


def test_from_photographs_to_an_evaluation(capsys, model, photos, tmp_path):
    status, out, err = run(capsys, "encode", model, photos, "-o", tmp_path / "codes.npz", "--logits", "--json")
    assert status == 0, err
    assert json.loads(out)["items"] == 24
    codes = Encoded.load(tmp_path / "codes.npz")
    assert codes.ids[0] == "flat/00.png"
    assert codes.labels.tolist() == ["flat"] * 12 + ["tall"] * 12
    assert np.array_equal(codes.logits, Hasher.load(model, device="cpu").logits(photos))
    split = tmp_path / "query.txt"
    split.write_text("flat/00.png 0\nflat/01.png 0\ntall/00.png 1\n")
    (tmp_path / "database.txt").write_text("".join(f"{name} {int('tall' in name)}\n" for name in codes.ids))
    status, out, err = run(capsys, "evaluate", model, "--database", tmp_path / "database.txt", "--query", split,
                           "--root", photos, "--json")  # fmt: skip
    assert status == 0, err
    result = json.loads(out)
    assert (result["queries"], result["database"], result["left_out"]) == (3, 24, 3)
    assert 0 < result["lengths"][0]["map"]["hamming"] <= 1
    assert 0 < result["float"]["cosine"] <= 1
    status, out, err = run(capsys, "evaluate", model, "--database", photos, "--query", photos)
    assert status == 0, err
    assert "mAP@" in out


def test_summary_and_json(capsys, photos, encoder, tmp_path):
    status, out, err = finetune(capsys, photos, encoder, tmp_path / "m")
    assert status == 0, err
    assert "codes of 16 bits, trained in" in out
    assert f"next: crovca encode {tmp_path / 'm'} IMAGES -o codes.npz" in out
    assert "parameters are trained" in err
    assert "there are labels, which are not used; --supervised learns the classes" in err
    status, out, err = finetune(capsys, photos, encoder, tmp_path / "m", "--force", "--json", "--supervised",
                                "--lora-rank", "2", "--preset", "small")  # fmt: skip
    assert status == 0, err
    summary = json.loads(out)
    assert summary["kind"] == "images"
    assert summary["pairing"] == ["views", "classes"]
    assert 0 < summary["trained_parameters"] < summary["parameters"]
    assert summary["left_out"] == {}
    assert Hasher.load(tmp_path / "m", device="cpu").fine_tuning.lora_rank == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_images_that_cannot_be_read_are_counted(capsys, model, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "flat" / "broken.jpg").write_bytes(b"")
    status, out, err = run(capsys, "encode", model, tmp_path / "photos", "-o", tmp_path / "c.npz", "--json")
    assert status == 0
    assert json.loads(out)["left_out"] == {"empty": 1}
    assert "1 of 25 images are left out (1 empty), the first is flat/broken.jpg: 0 bytes" in " ".join(err.split())


def test_images_and_texts(capsys, pair, photos, tmp_path):
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    rows = [f"{name},{'a b' if 'flat' in name else 'x y'}\n" for name in names for _ in range(2)]
    (tmp_path / "captions.csv").write_text("id,caption\n" + "".join(rows))
    status, out, err = finetune(capsys, photos, pair, tmp_path / "m", "--texts", tmp_path / "captions.csv", "--json")
    assert status == 0, err
    assert json.loads(out)["kind"] == "images and texts"
    (tmp_path / "words.txt").write_text("a b\nx y\n")
    status, out, err = run(capsys, "encode", tmp_path / "m", tmp_path / "words.txt", "--modality", "texts",
                           "-o", tmp_path / "words.npz")  # fmt: skip
    assert status == 0, err
    assert len(Encoded.load(tmp_path / "words.npz")) == 2
    status, out, err = run(capsys, "evaluate", tmp_path / "m", "--database", photos, "--query", tmp_path / "words.txt",
                           "--query-modality", "texts", "--json")  # fmt: skip
    assert status == 0, err
    (tmp_path / "lines.txt").write_text("a\n" * 24)
    assert finetune(capsys, photos, pair, tmp_path / "n", "--texts", tmp_path / "lines.txt")[0] == 0
    (tmp_path / "few.txt").write_text("a\n" * 3)
    status, _, err = finetune(capsys, photos, pair, tmp_path / "o", "--texts", tmp_path / "few.txt")
    assert status == 2
    assert "holds 3 texts for 24 images" in err
    (tmp_path / "others.csv").write_text("id,caption\nnobody.png,a\n")
    status, _, err = finetune(capsys, photos, pair, tmp_path / "o", "--texts", tmp_path / "others.csv")
    assert (status, "has the id of an image" in err) == (2, True)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --encoder"),
        (["--encoder", "nowhere"], "there is no folder 'nowhere' and no encoder of that name"),
        (["--encoder", "{encoder}", "--lora-rank", "-1"], "lora_rank must be a whole number of at least 1"),
        (["--encoder", "{encoder}", "--supervised", "--captions"], "--supervised does not go with texts"),
        (["--encoder", "{encoder}", "--captions"], "EncoderError|text|no captions"),
        (["--encoder", "{encoder}", "--nested", "4", "--no-nested"], "contradict each other"),
        (["--encoder", "{encoder}", "--preset", "tiny"], "unknown preset 'tiny'"),
        (["--encoder", "{encoder}", "--preset", "cc3m"], "images alone are taught by augmented views"),
        (["--encoder", "{encoder}", "--bits", "0"], "bits"),
        (["--encoder", "{encoder}", "--root", "x"], "a root goes with a split file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, photos, encoder, tmp_path, options, message):
    given = [option.format(encoder=encoder) for option in options]
    status, _, err = run(capsys, "finetune", photos, "-o", tmp_path / "m", "--device", "cpu", *given)
    assert status == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert any(part in errors[0] for part in message.split("|"))
    assert "internal error" not in err
    assert list(tmp_path.iterdir()) == []


def test_labels_and_inputs_are_checked(capsys, photos, encoder, tmp_path):
    (tmp_path / "flat").mkdir()
    for path in (photos / "flat").iterdir():
        shutil.copy(path, tmp_path / "flat" / path.name)
    status, _, err = finetune(capsys, tmp_path / "flat", encoder, tmp_path / "m", "--supervised")
    assert (status, "--supervised needs labels, and this folder has none" in err) == (2, True)
    status, _, err = finetune(capsys, tmp_path / "flat", encoder, tmp_path / "flat")
    assert (status, "would replace the input" in err) == (2, True)
    np.save(tmp_path / "e.npy", np.zeros((3, 32), np.float32))
    status, _, err = finetune(capsys, tmp_path / "e.npy", encoder, tmp_path / "m")
    assert (status, "not a source of images" in err) == (2, True)


def test_models_of_images_and_of_embeddings_are_not_mixed_up(capsys, model, photos, tmp_path):
    from crovca.hasher import Hasher

    X = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    np.save(tmp_path / "e.npy", X)
    Hasher(bits=8, epochs=1).fit(X).save(tmp_path / "plain")
    for arguments, message in (
        (("encode", model, tmp_path / "e.npy"), "e.npy: not a source of images"),
        (("encode", tmp_path / "plain", photos), str(photos)),
        (("encode", tmp_path / "plain", tmp_path / "e.npy", "--encoder", "x"), "has no encoder"),
        (("encode", tmp_path / "plain", tmp_path / "e.npy", "--root", "x"), "--root goes with models of images"),
        (("encode", model, photos, "--modality", "texts"), "this model takes images"),
        (("encode", model, photos, "--bits", "17"), "17"),
        (("encode", model, photos, "--encoder", tmp_path / "gone"), "needs its encoder"),
    ):
        status, _, err = run(capsys, *arguments, "-o", tmp_path / "c.npz")
        assert status == 2, err
        assert message in err, err
        assert not (tmp_path / "c.npz").exists()


def test_export(capsys, model, tmp_path):
    pytest.importorskip("onnxscript")
    status, out, err = run(capsys, "export", model, "--onnx", "-o", tmp_path / "graphs", "--json")
    assert status == 0, err
    assert set(json.loads(out)["graphs"]) == {"embedding_to_codes.onnx", "image_to_codes.onnx"}
    status, _, err = run(capsys, "export", model, "--onnx", "-o", tmp_path / "graphs")
    assert (status, "exists already" in err) == (2, True)
    status, _, err = run(capsys, "export", model, "-o", tmp_path / "other")
    assert (status, "name a format: --onnx" in err) == (2, True)


@pytest.mark.starts
def test_a_killed_command_goes_on_to_the_same_model(capsys, tmp_path, photos, encoder):
    """kill -9, and the same command again: the weights are those of a run that nobody stopped."""
    options = ["--bits", "8", "--epochs", "25", "--batch-size", "12", "--device", "cpu", "--supervised"]
    options += ["--checkpoint-every", "0.05", "--encoder", encoder]
    arguments = lambda output: list(map(str, [photos, *options, "-o", tmp_path / output]))  # noqa: E731
    state = tmp_path / "model.partial" / "state.safetensors"
    process = Started([*FINETUNE, *arguments("model")])
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    for output, said in (("model", True), ("whole", False)):
        status, _, err = run(capsys, "finetune", *arguments(output))
        assert status == 0
        assert ("going on from step" in err) == said
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "model"))
    assert ours == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "whole"]
