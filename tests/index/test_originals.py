"""Kept embeddings, rescoring, fingerprints, tuning: what an index promises of them."""

import json

import numpy as np
import pytest

from crovca import Codes, HashIndex, ShardedIndex
from crovca.errors import ConfigError, FileFormatError, InvalidInputError
from crovca.index import view
from crovca.index.manifest import Manifest
from crovca.index.origin import Origin
from crovca.index.originals import Loss, Originals
from crovca.index.sketches import SketchQuery, sketches_of, words_of
from crovca.index.tuning import OVERSAMPLINGS, tune

WIDTH, BITS = 24, 32
RNG = np.random.default_rng(0)
DIRECTIONS = RNG.normal(size=(WIDTH, BITS)).astype(np.float32)


def floats(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32) * 3


def codes_of(values):
    return Codes.from_logits(values @ DIRECTIONS)


def cosine(queries, values):
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (queries, values)]
    return unit[0] @ unit[1].T


@pytest.fixture(params=["int8", "float16"])
def index(request, tmp_path):
    """Three segments of 900, 80 and 7 items, some deleted, some replaced."""
    values = floats(987)
    with HashIndex.create(tmp_path / "index", BITS, keep=request.param) as made:
        for start, stop in ((0, 900), (900, 980), (980, 987)):
            part = values[start:stop]
            made.add(np.arange(start, stop), codes_of(part), {"n": np.arange(start, stop)}, part)
        made.delete([3, 950])
        values[5] = -values[5]
        made.upsert([5], codes_of(values[5:6]), None, values[5:6])
        yield made, values


def test_rescoring_orders_the_candidates_by_cosine_of_the_floats(index, monkeypatch):
    made, values = index
    queries = floats(20, seed=1)
    similar = cosine(queries, values)
    similar[:, [3, 950]] = -9
    found = made.search(queries @ DIRECTIONS, 10, rescore=98.4, embeddings=queries)
    assert found.metric == "cosine"
    true = np.argsort(-similar, axis=1)[:, :10]
    assert np.mean([np.isin(a, b) for a, b in zip(found.ids, true, strict=True)]) > 0.97  # but for what int8 loses
    np.testing.assert_allclose(found.distances, 1 - np.take_along_axis(similar, found.ids, 1), atol=0.01)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    monkeypatch.setattr(view, "_SKETCHES", (30, 200))  # the least and the most candidates of a query
    few = made.search(queries @ DIRECTIONS, 10, rescore=2, embeddings=queries)
    alone = made.search(queries @ DIRECTIONS, 200)
    assert alone.metric == "bce"
    kept = []
    for few_ids, candidates, row in zip(few.ids, alone.ids, similar, strict=True):
        assert set(few_ids.tolist()) <= set(candidates.tolist())
        kept.append(np.isin(few_ids, candidates[np.argsort(-row[candidates])][:10]).mean())
    assert np.mean(kept) > 0.65  # of 200 candidates, sketches of 24 numbers tell which 20 to read
    assert found.metadata()["n"].to_pylist() == [None if i == 5 else i for i in found.ids.ravel().tolist()]


def test_rescoring_goes_with_conditions_prefixes_and_few_items(index):
    made, values = index
    query = floats(1, seed=2)
    found = made.search(query @ DIRECTIONS, 4, rescore=1000, embeddings=query, where="n < 40", bits=16)
    expected = [i for i in np.argsort(-cosine(query, values)[0]) if i < 40 and i not in (3, 5)][:4]
    assert found.ids[0].tolist() == expected
    assert made.search(query @ DIRECTIONS, 50, rescore=2, embeddings=query, where="n < 10").ids.shape == (1, 8)
    assert made.search(query @ DIRECTIONS, 50, rescore=2, embeddings=query, where="n < 0").ids.shape == (1, 0)


def test_originals_go_through_compaction_shards_and_reopening(index, tmp_path):
    made, values = index
    query = floats(5, seed=3)
    before = made.search(query @ DIRECTIONS, 10, rescore=5, embeddings=query)
    other = floats(50, seed=4)
    with HashIndex.create(tmp_path / "other", BITS, keep=made.keep) as more:
        more.add(np.arange(2000, 2050), codes_of(other), None, other)
    with ShardedIndex.open([made.path, tmp_path / "other"]) as shards:
        both = shards.search(query @ DIRECTIONS, 10, rescore=200, embeddings=query)
        similar = cosine(query, np.concatenate([values, other]))
        similar[:, [3, 950]] = -9
        ids = np.append(np.arange(987), np.arange(2000, 2050))
        assert (both.ids == ids[np.argsort(-similar, axis=1)[:, :10]]).mean() > 0.9
    made.compact()
    assert [len(segment) for segment in made.view().segments] == [985]
    made.close()
    with HashIndex.open(made.path) as again:
        assert again.verify() == []
        after = again.search(query @ DIRECTIONS, 10, rescore=5, embeddings=query)
        assert (after.ids == before.ids).all() and (after.distances == before.distances).all()
        assert again.stats()["disk_bytes"]["originals"] > 985 * WIDTH


def test_a_flipped_bit_of_the_originals_is_found_and_a_cut_file_is_named(index):
    made, _ = index
    made.close()
    for name in ("originals.npy", "scales.npy", "sketches.npy"):
        victim = made.path / "segments" / "00000001" / name
        content = victim.read_bytes()
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with HashIndex.open(made.path) as opened:
            assert f"{name} does not have the checksum" in opened.verify()[0]
        victim.write_bytes(content[:-1])
        with pytest.raises(FileFormatError, match=f"00000001 is damaged: .*{name}"):
            HashIndex.open(made.path)
        victim.write_bytes(content)


def test_sketches_estimate_the_cosine_as_their_source_says():
    rng = np.random.default_rng(3)
    for width in (24, 384, 1280):
        rows = np.maximum(rng.normal(size=(2000, width)), -0.2).astype(np.float32)  # not centered, not alike
        rows[0], rows[1] = 0, rows[2] * 8
        query = rows[2] + rng.normal(size=width).astype(np.float32)
        unit = query / np.linalg.norm(query)
        asked = SketchQuery.of(unit)
        sketches = sketches_of(rows)
        estimated = asked.distances(sketches)
        assert sketches.shape == (2000, words_of(width)) and estimated[0] == 0
        assert np.isclose(estimated[1], estimated[2])
        true = cosine(unit[None], np.concatenate([rows[2:3], rows[2:]]))[0]
        error = estimated[1:] / (estimated[1:] @ true / (true @ true)) - true  # in their own unit, which is negative
        expected = 0.756 * np.sqrt((1 - true**2) / width).mean() * np.sqrt(2 / np.pi)
        assert np.abs(error).mean() < 1.15 * expected
        alone = np.concatenate([asked.distances(sketches[row : row + 1]) for row in range(50)])
        assert (alone == estimated[:50]).all()  # whatever stands beside it


def test_an_index_without_sketches_reads_what_bits_propose_and_compacting_makes_them(index):
    made, values = index
    query = floats(3, seed=9)
    entries = [segment.entry for segment in made.view().segments]
    made.close()
    manifest = json.loads((made.path / "manifest.json").read_text())
    del manifest["sha256"]
    for segment in manifest["segments"][:1]:
        segment["files"] = [file for file in segment["files"] if file["name"] != "sketches.npy"]
        (made.path / "segments" / segment["name"] / "sketches.npy").unlink()
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with HashIndex.open(made.path, writable=True) as old:
        assert len(entries) == len(old.view().segments) and old.verify() == []
        found = old.search(query @ DIRECTIONS, 10, rescore=3, embeddings=query)
        candidates = old.search(query @ DIRECTIONS, 30).ids
        similar = cosine(query, values)
        for ids, proposed, row in zip(found.ids, candidates, similar, strict=True):
            assert row[ids].min() >= np.sort(row[proposed])[-10] - 0.01
        old.compact()
        assert old.view().candidates_for(300) == 3000 and old.verify() == []
        more = old.search(query @ DIRECTIONS, 10, rescore=3, embeddings=query)
        assert (more.distances.mean(axis=1) < found.distances.mean(axis=1)).all()


def test_what_does_not_fit_the_originals_is_refused_in_words(index, tmp_path):
    made, values = index
    query = floats(2, seed=3)
    logits = query @ DIRECTIONS
    cases = [
        ((logits,), {"rescore": 4}, "give those of the queries"),
        ((logits,), {"rescore": 4, "embeddings": query[:, :20]}, "keeps embeddings of 24 numbers.*have 20"),
        ((logits,), {"rescore": 4, "embeddings": query[:1]}, "1 embeddings for 2 queries"),
        ((logits,), {"rescore": 0.5, "embeddings": query}, "at least 1"),
        ((logits,), {"rescore": 4, "embeddings": query * np.nan}, "finite"),
        ((logits,), {"embeddings": query}, "for rescoring"),
        ((), {"embeddings": query}, "holds no model"),
        ((), {}, "or give embeddings of them"),
        ((logits,), {"rescore": "tuned", "embeddings": query}, "was not tuned"),
        ((query,), {}, "holds codes of 32 bits"),
    ]
    for given, options, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            made.search(*given, k=3, **options)
    for embeddings, message in (
        (None, "give those of the items"),
        (values[:2], r"shape \(1, 24\)"),
        (values[:1, :8], r"shape \(1, 24\)"),
        (values[:1] * np.inf, "NaN or infinity in row 0"),
    ):
        before = made.generation
        with pytest.raises(InvalidInputError, match=message):
            made.add([7777], codes_of(values[:1]), None, embeddings)
        assert made.generation == before
    with HashIndex.create(tmp_path / "none", BITS) as none:
        none.add([1], codes_of(values[:1]), None, values[:1])  # passed over
        with pytest.raises(InvalidInputError, match=r"keeps no embeddings; .*--keep int8"):
            none.search(logits, rescore=4, embeddings=query)
    with pytest.raises(ConfigError, match="keep must be one of none, float16, int8"):
        HashIndex.create(tmp_path / "more", BITS, keep="int4")


def test_codes_and_embeddings_of_another_model_or_encoder_are_refused(tmp_path):
    values = floats(4)
    encoder = {
        "encoder": "clip",
        "revision": "a",
        "identity": {"source": "clip", "revision": "a", "weights_sha256": "1" * 64},
        "preprocessing": {"size": 224},
    }
    with HashIndex.create(tmp_path / "index", BITS, model="a" * 64, encoder=encoder) as index:
        index.add([0], codes_of(values[:1]), origin=Origin("a" * 64, encoder))
        moved = {**encoder, "encoder": "/elsewhere/clip", "revision": "main"}
        moved["identity"] = {**encoder["identity"], "source": "/elsewhere/clip", "revision": "main"}
        index.add([1], codes_of(values[1:2]), origin=Origin(None, moved))  # the same weights
        for origin, message in (
            (Origin("b" * 64), r"another model \(bbbbbbbbbbbb\).*\(aaaaaaaaaaaa\).*refit"),
            (Origin(None, {**encoder, "preprocessing": {"size": 336}}), "another preprocessing"),
            (
                Origin(None, {**encoder, "identity": {"weights_sha256": "2" * 64}}),
                "another encoder, clip .weights 222222222222, revision a",
            ),
        ):
            with pytest.raises(InvalidInputError, match=message):
                index.add([2], codes_of(values[2:3]), origin=origin)
            with pytest.raises(InvalidInputError, match=message):
                index.search(values @ DIRECTIONS, origin=origin)
        assert len(index) == 2
    with HashIndex.create(tmp_path / "learns", BITS) as index:
        index.add([0], codes_of(values[:1]), origin=Origin("c" * 64))
        assert index.origin.model == "c" * 64
        with pytest.raises(InvalidInputError, match="another model"):
            index.upsert([0], codes_of(values[:1]), origin=Origin("d" * 64))


def test_int8_loses_little_and_float16_nothing_of_float16():
    values = np.concatenate([floats(50), np.zeros((1, WIDTH), np.float32), np.full((1, WIDTH), 1e30, np.float32)])
    kept, loss = Originals.of(values, "int8", Loss())
    assert loss.items == 52 and loss.mean > 0.97 and kept[:].dtype == np.float32
    assert cosine(kept[:50], values[:50]).diagonal().min() > 0.9999
    np.testing.assert_allclose(kept[np.arange(50)], values[:50], atol=np.abs(values[:50]).max() / 250)
    assert (kept[50:51] == 0).all()
    halves = floats(20).astype(np.float16)
    assert (Originals.of(halves, "float16", Loss())[0][:] == halves).all()
    assert np.isfinite(Originals.of(values, "float16", Loss())[0][:]).all()


def test_indexes_of_the_first_format_still_open(tmp_path):
    path = tmp_path / "index"
    with HashIndex.create(path, BITS) as index:
        index.add([1, 2], codes_of(floats(2)))
    content = json.loads((path / "manifest.json").read_text())
    for name in ("keep", "width", "model", "fingerprint", "tuned", "sha256"):
        del content[name]
    (path / "manifest.json").write_text(json.dumps({**content, "format_version": 1}))
    with HashIndex.open(path, writable=True) as index:
        assert index.verify() == [] and index.keep == "none" and index.origin == Origin()
        index.add([3], codes_of(floats(1)))
    assert Manifest.load(path).generation == 2


@pytest.mark.parametrize(
    "change", [{"keep": "int4"}, {"model": "../evil"}, {"width": 0}, {"fingerprint": "x"}, {"tuned": 3}]
)
def test_a_manifest_that_says_what_cannot_be_is_damaged(tmp_path, change):
    HashIndex.create(tmp_path / "index", BITS).close()
    file = tmp_path / "index" / "manifest.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps({**content, **change}))
    with pytest.raises(FileFormatError, match="is damaged"):
        HashIndex.open(tmp_path / "index")


def test_recoding_changes_everything_in_one_step(index):
    made, _ = index
    query = floats(3, seed=8)
    turned = RNG.normal(size=(WIDTH, 48)).astype(np.float32)

    def broken(block):
        raise RuntimeError("stopped")

    save = lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}"))  # noqa: E731
    reader = HashIndex.open(made.path)
    before = reader.search(query @ DIRECTIONS, 5)
    with pytest.raises(RuntimeError, match="stopped"):
        made.recode(broken, bits=48, origin=Origin("e" * 64), save_model=save)
    assert made.bits == BITS and made.verify() == []
    made.recode(lambda block: Codes.from_logits(block @ turned), bits=48, origin=Origin("e" * 64), save_model=save)
    assert (made.bits, made.origin.model, len(made)) == (48, "e" * 64, 985)
    assert (reader.search(query @ DIRECTIONS, 5).ids == before.ids).all()  # it sees what it opened
    assert reader.refresh() and reader.bits == 48
    assert reader.get([9]).metadata["n"].to_pylist() == [9]
    assert reader.search(query @ turned, 3, rescore=9, embeddings=query).ids.shape == (3, 3)
    with pytest.raises(InvalidInputError, match="holds codes of 48 bits"):
        reader.search(query @ DIRECTIONS)
    reader.close()
    assert made.verify() == []


def test_tuning_finds_what_reaches_the_target_on_other_queries(tmp_path):
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(40, WIDTH)) * 2

    def draw(count):
        return (centers[rng.integers(0, 40, count)] + rng.normal(size=(count, WIDTH))).astype(np.float32)

    values, queries = draw(1500), draw(400)
    with HashIndex.create(tmp_path / "index", BITS, keep="int8") as index:
        index.add(np.arange(1500), codes_of(values), None, values)
        found = tune(index, 0.9, 5)
        assert found.reached and found.chosen.low >= 0.9 and found.queries == 512
        for point in found.curve:
            if point[:2] < found.chosen[:2] and point.oversampling <= OVERSAMPLINGS[-1]:
                assert point.low < 0.9  # nothing cheaper would do
        index.keep_tuned(found)
        got = index.search(
            codes_of(queries), 5, metric="hamming", rescore=found.oversampling, bits=found.bits, embeddings=queries
        )
        true = np.argsort(-cosine(queries, values), axis=1)[:, :5]
        assert np.mean([np.isin(a, b).mean() for a, b in zip(got.ids, true, strict=True)]) > 0.88
        same = index.search(codes_of(queries), 5, metric="hamming", rescore="tuned", embeddings=queries)
        assert (same.ids == got.ids).all() and same.metric == "cosine"
        impossible = tune(index, 0.99999, 5)
        assert not impossible.reached and impossible.advice in impossible.sentence()
        exact = tune(index, 0.9, 5, embeddings=lambda ids: values[ids])
        assert abs(exact.chosen.recall - found.chosen.recall) < 0.05
        with pytest.raises(ConfigError, match="between 0 and 1"):
            tune(index, 95)
    with HashIndex.open(tmp_path / "index") as again:
        assert again.view().tuned["chosen"]["bits"] == found.bits
    with HashIndex.create(tmp_path / "none", BITS) as index:
        index.add(np.arange(1500), codes_of(values))
        with pytest.raises(InvalidInputError, match="keeps no embeddings"):
            tune(index, 0.9)
        alone = tune(index, 0.95, embeddings=lambda ids: values[ids])
        assert not alone.reached and "--keep int8" in alone.advice and alone.oversampling is None
