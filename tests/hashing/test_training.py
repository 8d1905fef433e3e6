import json
import signal
import time

import numpy as np
import pytest
import torch

from crovca.data.store import save_store
from crovca.errors import ConfigError, FileFormatError, InvalidInputError, TrainingError
from crovca.evaluation.diagnostics import bit_balance
from crovca.hasher import Hasher
from crovca.hashing.config import PRESETS, TrainingConfig, default_epochs, nested_lengths
from crovca.hashing.monitor import BitMonitor
from crovca.hashing.network import HashCoder, calibrate
from crovca.hashing.towers import Tower, Towers
from crovca.hashing.train import Silent, learning_rate
from tests.started import Started, ended


def clusters(items=240, width=12, classes=6, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(items) % classes
    centers = 2 * random.normal(size=(classes, width))
    return (centers[labels] + random.normal(size=(items, width))).astype(np.float32), labels


class Recorder(Silent):
    def __init__(self, stop_at=None):
        self.states, self.messages, self.stop_at = [], [], stop_at

    def progress(self, state):
        self.states.append(state)
        if state.step == self.stop_at:
            raise KeyboardInterrupt

    def message(self, text):
        self.messages.append(text)


def weights_equal(one, other):
    ours, theirs = one.towers_.state_dict(), other.towers_.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_small_and_large_networks():
    small, large = HashCoder(10, 4), HashCoder(10, 4, "large")
    linear = [
        [(layer.in_features, layer.out_features) for layer in coder.layers if isinstance(layer, torch.nn.Linear)]
        for coder in (small, large, HashCoder(1500, 4, "large"))
    ]
    assert linear[0] == [(10, 10), (10, 4)]
    assert linear[1] == [(10, 2048), (2048, 2048), (2048, 4)]
    assert linear[2][0] == (1500, 3000)
    assert [type(layer).__name__ for layer in large.layers] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert float(HashCoder(300, 4).layers[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_towers_normalize_each_view_by_itself():
    coder = HashCoder(4, 3)
    views = [torch.randn(20, 4), torch.randn(20, 4) + 5]
    logits = Towers([Tower(coder)])(views)
    assert logits.shape == (2, 20, 3)
    torch.testing.assert_close(logits.mean(dim=1), torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_calibration_gives_the_statistics_of_the_embeddings():
    coder = HashCoder(6, 5)
    values = np.random.default_rng(0).normal(size=(5000, 2, 6)).astype(np.float16) + np.float16(3)
    calibrate(coder, values)
    outputs = coder.raw(torch.from_numpy(values.reshape(-1, 6).astype(np.float32))).detach()
    torch.testing.assert_close(coder.norm.running_mean, outputs.mean(dim=0), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(coder.norm.running_var, outputs.var(dim=0), rtol=1e-3, atol=1e-9)


def test_a_run_of_a_few_steps_has_balanced_bits():
    X, _ = clusters()
    balance = bit_balance(Hasher(bits=16, epochs=2).fit(X + 5).encode(X + 5))
    assert 0.1 < balance.min() <= balance.max() < 0.9


def test_learning_rate_falls_along_a_cosine():
    config = TrainingConfig(lengths=(8,), epochs=1, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_training_learns_clusters():
    X, y = clusters()
    hasher = Hasher(bits=16, epochs=20, batch_size=64, start="random").fit(X)
    codes = hasher.encode(X).hamming(hasher.encode(X))
    same = y[:, None] == y[None, :]
    assert codes[same].mean() < 0.5 * codes[~same].mean()
    assert hasher.history_[-1]["loss"] < hasher.history_[0]["loss"]
    assert 0.2 < hasher.history_[-1]["balance_min"] <= hasher.history_[-1]["balance_max"] < 0.8


@pytest.mark.parametrize(
    "fit",
    [
        lambda hasher, X, y: hasher.fit(X),
        lambda hasher, X, y: hasher.fit(X, y),
        lambda hasher, X, y: hasher.fit(np.stack([X, X + 0.1, X - 0.1], axis=1)),
        lambda hasher, X, y: hasher.fit(np.stack([X, X + 0.1], axis=1), y),
        lambda hasher, X, y: hasher.fit(X, np.stack([y < 3, y % 2 == 0], axis=1)),
    ],
    ids=["neighbors", "classes", "views", "classes of views", "several classes"],
)
def test_the_same_seed_gives_the_same_model(fit):
    X, y = clusters(items=90)
    one, two, other = (fit(Hasher(bits=8, epochs=2, batch_size=32, seed=seed), X, y) for seed in (1, 1, 2))
    assert weights_equal(one, two)
    assert one.history_ == two.history_
    assert not weights_equal(one, other)


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("stop_at", [10, 20, 30])
def test_an_interrupted_run_ends_in_the_same_model(tmp_path, supervised, stop_at):
    X, y = clusters()
    labels = y if supervised else None
    make = lambda: Hasher(bits=8, epochs=10, batch_size=64)  # noqa: E731
    whole = make().fit(X, labels)
    partial = tmp_path / "model.partial"
    with pytest.raises(KeyboardInterrupt):
        make().fit(X, labels, checkpoint=partial, checkpoint_seconds=0, observer=Recorder(stop_at))
    assert partial.exists()
    recorder = Recorder()
    resumed = make().fit(X, labels, checkpoint=partial, observer=recorder)
    assert f"going on from step {stop_at - 1} of 30" in recorder.messages
    assert weights_equal(whole, resumed)
    assert whole.history_ == resumed.history_


def test_a_damaged_state_says_how_to_restart(tmp_path):
    X, _ = clusters()
    partial = tmp_path / "model.partial"
    with pytest.raises(KeyboardInterrupt):
        Hasher(bits=8, epochs=10).fit(X, checkpoint=partial, checkpoint_seconds=0, observer=Recorder(stop_at=10))
    for name in ("state.safetensors", "neighbors.npy"):
        (partial / name).write_bytes((partial / name).read_bytes()[:100])
        with pytest.raises(FileFormatError, match="--force restarts the run"):
            Hasher(bits=8, epochs=10).fit(X, checkpoint=partial)


def test_another_run_never_goes_on_from_a_partial_one(tmp_path):
    X, _ = clusters()
    partial = tmp_path / "model.partial"
    with pytest.raises(KeyboardInterrupt):
        Hasher(bits=8, epochs=10).fit(X, checkpoint=partial, observer=Recorder(stop_at=10))
    with pytest.raises(ConfigError, match=r"unfinished run with bits = 8, now it is 16; .*--force to restart"):
        Hasher(bits=16, epochs=10).fit(X, checkpoint=partial)
    with pytest.raises(ConfigError, match="unfinished run with data"):
        Hasher(bits=8, epochs=10).fit(X + 1, checkpoint=partial)
    assert partial.exists()


TRAIN = ["-m", "crovca.cli.main", "train"]


@pytest.mark.starts
def test_a_killed_command_goes_on_to_the_same_model(tmp_path):
    """kill -9 at several moments, each time the same command again; byte-identical weights at the end."""
    X, _ = clusters(items=600, width=64)
    np.savez(tmp_path / "e.npz", embeddings=X)
    options = ["--bits", "64", "--epochs", "20", "--batch-size", "64", "--checkpoint-every", "0.05"]

    def command(output):
        return [*TRAIN, str(tmp_path / "e.npz"), *options, "-o", str(tmp_path / output)]

    assert ended(command("whole"))[0] == 0
    killed = 0
    for _ in range(3):
        process = Started(command("model"))
        state = tmp_path / "model.partial" / "state.safetensors"
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        assert not (tmp_path / "model").exists() or process.returncode == 0
    assert killed >= 2
    if not (tmp_path / "model").exists():
        status, _, said = ended(command("model"))
        assert status == 0 and "going on from step" in said
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "model"))
    assert ours == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npz", "model", "whole"]


def test_a_store_trains_like_the_array(tmp_path):
    X, y = clusters(items=90)
    save_store(tmp_path / "store", X, labels=y, shard_size=40)
    from crovca.data.embeddings import load_embeddings

    store = load_embeddings(tmp_path / "store")
    one = Hasher(bits=8, epochs=2).fit(store)
    assert weights_equal(one, Hasher(bits=8, epochs=2).fit(X))


def test_fewer_items_than_a_batch_make_a_smaller_batch():
    X, _ = clusters(items=9)
    recorder = Recorder()
    Hasher(bits=8, epochs=1).fit(X, observer=recorder)
    assert recorder.states[-1].steps == 1
    assert any("batches of 9: there are fewer items than batch_size = 256" in text for text in recorder.messages)


def test_pairing_is_chosen_and_said():
    X, y = clusters(items=60)
    views = np.stack([X, X], axis=1)
    for data, labels, expected in ((X, None, "neighbors"), (views, None, "views"), (views, y, "classes")):
        recorder = Recorder()
        hasher = Hasher(bits=8, epochs=1).fit(data, labels, observer=recorder)
        assert hasher.pairing_ == (expected,)
        assert any(text.startswith(f"pairing: {expected}, because") for text in recorder.messages)
    both = Hasher(bits=8, epochs=1, pairing=("views", "neighbors")).fit(views)
    assert both.pairing_ == ("views", "neighbors")
    with pytest.raises(InvalidInputError, match="'classes' needs labels"):
        Hasher(bits=8, pairing="classes").fit(X)
    with pytest.raises(ConfigError, match="pairing must be 'auto' or some of"):
        Hasher(bits=8, pairing="friends").fit(X)


def test_more_than_two_stored_views_make_a_step():
    X, _ = clusters(items=60)
    views = np.stack([X, X + 0.1, X - 0.1], axis=1)
    three = Hasher(bits=8, epochs=2, views=3).fit(views)
    assert not weights_equal(three, Hasher(bits=8, epochs=2).fit(views))
    with pytest.raises(InvalidInputError, match="v at least 4"):
        Hasher(bits=8, views=4).fit(views)
    with pytest.raises(ConfigError, match="views must be 2"):
        Hasher(bits=8, views=3, pairing=("views", "neighbors")).fit(views)


def test_a_diverging_run_says_so():
    X, _ = clusters(items=60)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf).* lower the learning rate"):
        Hasher(bits=8, epochs=50, learning_rate=1e30, batch_size=16).fit(X * 1e30)


def test_cross_modal_pairs_meet():
    X, y = clusters()
    texts = np.eye(6, dtype=np.float32)[y]
    hasher = Hasher.for_pairs(bits=16, epochs=20, batch_size=64).fit(X, texts=texts)
    words = hasher.encode(np.eye(6, dtype=np.float32), modality="texts")
    nearest = words.hamming(hasher.encode(X, modality="images")).argmin(axis=0)
    assert (nearest == y).mean() > 0.9
    assert [hasher.width(name) for name in hasher.modalities] == [12, 6]
    with pytest.raises(ConfigError, match="images of 12 and texts of 6; use shared=False"):
        Hasher.for_pairs(shared=True).fit(X, texts=texts)
    towers = Hasher.for_pairs(bits=8, epochs=1, shared=True).fit(X, texts=9 * X + 5).towers_
    assert towers.coders[0].layers is towers.coders[1].layers
    assert not torch.equal(towers.coders[0].norm.running_mean, towers.coders[1].norm.running_mean)


def test_bits_that_carry_nothing_are_reported_once_in_words():
    logits = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 1] = 0.5  # dead
    logits[:, 2] = logits[:, 2].abs() + 0.1  # stuck
    logits[:, 4] = -logits[:, 3]  # duplicate
    monitor = BitMonitor(6)
    monitor.update(logits)
    texts = monitor.news()
    assert texts[0] == "bit 1 is dead: the logit is the same for every item"
    assert texts[1] == "bit 2 is stuck: the same for at least 100.0 % of the items"
    assert texts[2] == "bits 3 and 4 are duplicates: they nearly always agree, or always differ"
    assert monitor.news() == []
    assert monitor.balance() == (0.0 + float((logits[:, 0:] > 0).float().mean(0).min()), 1.0)


def test_a_trouble_is_told_again_only_when_it_has_doubled():
    """Which bits are duplicates changes from epoch to epoch in a small set: that is no news."""
    rng = torch.Generator().manual_seed(0)
    monitor = BitMonitor(12)
    told = []
    for copies in ([(0, 1)], [(2, 3)], [(4, 5)], [(0, 1), (2, 3)], [(0, 1), (4, 5), (6, 7)]):
        logits = torch.randn(400, 12, generator=rng)
        for one, other in copies:
            logits[:, other] = logits[:, one]
        monitor.reset()
        monitor.update(logits)
        told.append(len(monitor.news()))
    assert told == [1, 0, 0, 1, 0]


def test_a_real_run_reports_duplicated_bits():
    X = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0) + np.float32(0.001) * np.arange(40)[:, None] % 7
    recorder = Recorder()
    Hasher(bits=8, epochs=2, nested=False).fit(X.astype(np.float32), observer=recorder)
    assert any("duplicates" in text for text in recorder.messages)


def test_presets_are_the_columns_of_table_8():
    rows = {
        name: (p.learning_rate, p.weight_decay, p.diversity_weight, p.hashcoder, p.epochs)
        for name, p in PRESETS.items()
    }
    assert rows == {
        "small": (1e-3, 1e-2, 0.1, "small", 5),
        "imagenet1k": (1e-4, 1e-4, 0.1, "large", 5),
        "text-small": (1e-3, 1e-2, 0.1, "small", 5),
        "cc3m": (1e-4, 1e-4, 1.0, "large", 1),
    }
    hasher = Hasher.from_preset("imagenet1k", bits=32)
    assert (hasher.bits, hasher.nested, hasher.hashcoder, hasher.learning_rate) == (32, False, "large", 1e-4)
    assert Hasher.from_preset("small", epochs=7).epochs == 7
    assert Hasher.for_pairs(preset="cc3m").diversity_weight == 1.0
    with pytest.raises(ConfigError, match="unknown preset 'tiny'; expected one of"):
        Hasher.from_preset("tiny")


def test_nested_lengths():
    assert nested_lengths(256, "auto") == (16, 32, 64, 128, 256)
    assert nested_lengths(64, "auto") == (16, 32, 64)
    assert nested_lengths(13, "auto") == (13,)
    assert nested_lengths(64, False) == (64,)
    assert nested_lengths(64, (8, 40)) == (8, 40, 64)
    for wrong in ("all", (0,), (65,), 16, (1.5,)):
        with pytest.raises(ConfigError, match="nested must be"):
            nested_lengths(64, wrong)


def test_default_epochs_spend_a_budget_of_steps():
    assert default_epochs(7242, 256, supervised=False) == 20
    assert default_epochs(7242, 256, supervised=True) == 50
    assert default_epochs(1_000_000, 256, supervised=True) == 5
    assert default_epochs(10, 256, supervised=True) == 100
    held = [default_epochs(n, 256, supervised=False, base=True) for n in (10, 7242, 30_000, 10**6)]
    assert held == [25, 20, 7, 2]
    assert default_epochs(7242, 256, supervised=True, base=True) == 30


def test_impossible_settings_are_refused():
    good = TrainingConfig(lengths=(8, 16), epochs=1)
    assert TrainingConfig.from_dict(json.loads(json.dumps(good.to_dict()))) == good
    for change, message in [
        ({"lengths": ()}, "lengths"),
        ({"lengths": (16, 8)}, "ascending"),
        ({"lengths": (0,)}, "between 1 and 4,096"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"diversity_weight": float("nan")}, "diversity_weight must be 0 or more"),
        ({"hashcoder": "huge"}, "'small' or 'large', got 'huge'"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TrainingConfig(**{"lengths": (8,), "epochs": 1, **change})
    with pytest.raises(ConfigError, match="unknown configuration key 'lamda'"):
        TrainingConfig.from_dict({**good.to_dict(), "lamda": 1})
