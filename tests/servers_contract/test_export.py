"""Exports for engines that cannot be started here, against their documented formulas written in Python."""

import datetime
import json
import re

import numpy as np
import pytest

from crovca import Codes, HashIndex
from crovca.errors import ConfigError, InvalidInputError, OutputExistsError
from crovca.servers.export import TARGETS, export, query_for
from tests.test_cli import run_json
from tests.test_cli_index import fails


def bits_msb_first(data):
    return np.unpackbits(np.frombuffer(data, np.uint8)).astype(np.float64)


def elasticsearch(folder, body):
    """ESVectorUtil.ipFloatBit: the query's numbers where a bit is set, the highest bit of a byte first."""
    dims = json.loads((folder / "index.json").read_text())["mappings"]["properties"]["code"]["dims"]
    script = body["query"]["script_score"]["script"]
    assert script["source"] == "dotProduct(params.weights, 'code') + params.shift"
    weights, shift = np.array(script["params"]["weights"]), script["params"]["shift"]
    assert len(weights) == dims and dims % 8 == 0
    lines = list(lines_of(folder))
    return {
        action["index"]["_id"]: float(weights @ bits_msb_first(bytes.fromhex(item["code"])) + shift)
        for action, item in zip(lines[::2], lines[1::2], strict=True)
    }


def opensearch(folder, body):
    """The Painless script, a line of Python for each of Java's: longs are signed and shifts drop what leaves them."""
    script = body["query"]["script_score"]["script"]
    weights, found = script["params"]["weights"], {}
    assert "(bits << bit) < 0" in script["source"] and "word * 64 + bit" in script["source"]
    lines = list(lines_of(folder))
    for action, item in zip(lines[::2], lines[1::2], strict=True):
        score = script["params"]["shift"]
        for word in range(-(-len(weights) // 64)):
            bits = item[f"word{word}"]
            assert -(2**63) <= bits < 2**63
            for bit in range(min(64, len(weights) - word * 64)):
                if (bits << bit) & (1 << 63):
                    score += weights[word * 64 + bit]
        assert (
            bytes(np.array(item["code"], np.int8))
            == b"".join(item[f"word{word}"].to_bytes(8, signed=True) for word in range(-(-len(weights) // 64)))[
                : len(item["code"])
            ]
        )
        found[action["index"]["_id"]] = score
    return found


def vespa(folder, body):
    """sum(query * unpack_bits(attribute)), big endian as unpack_bits is by default."""
    text = (folder / "item.sd").read_text()
    assert "sum(query(weights) * unpack_bits(attribute(code))) + query(shift)" in text
    bytes_, size = int(re.search(r"int8>\(x\[(\d+)\]", text)[1]), int(re.search(r"float>\(x\[(\d+)\]", text)[1])
    assert size == 8 * bytes_
    weights = np.array(body["input.query(weights)"])
    return {
        item["put"].removeprefix("id:crovca:item::"): float(
            weights @ bits_msb_first(bytes.fromhex(item["fields"]["code"]["values"])) + body["input.query(shift)"]
        )
        for item in lines_of(folder)
    }


def lines_of(folder):
    for file in sorted(folder.glob("items-*.ndjson")):
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


EVALUATORS = {"elasticsearch": elasticsearch, "opensearch": opensearch, "vespa": vespa}


@pytest.mark.parametrize("engine", TARGETS)
@pytest.mark.parametrize("metric", ["bce", "asymmetric_hamming", "hamming"])
@pytest.mark.parametrize("bits", [13, 64, 130])
def test_the_engines_formula_gives_the_indexs_distances(tmp_path, engine, metric, bits):
    chance = np.random.default_rng(bits)
    codes = Codes.from_bits(chance.integers(0, 2, (60, bits)))
    logits = chance.normal(size=bits).astype(np.float32)
    with HashIndex.create(tmp_path / "index", bits) as index:
        index.add(np.arange(60), codes)
        assert export(index, engine, tmp_path / "out").items == 60
        asked = Codes.from_logits(logits[None]) if metric == "hamming" else logits[None]
        expected = index.search(asked, 60, metric=metric)
    body, constant = query_for(engine, logits, 7, metric=metric)
    scores = EVALUATORS[engine](tmp_path / "out", body)
    assert min(scores.values()) >= 0  # Elasticsearch and OpenSearch refuse negative scores
    distances = {id: constant - score for id, score in scores.items()}
    found = [distances[str(id)] for id in expected.ids[0]]
    np.testing.assert_allclose(found, expected.distances[0], rtol=1e-5, atol=1e-5)
    assert 7 in body.values()  # k


@pytest.mark.parametrize("engine", TARGETS)
def test_no_score_is_negative_where_an_engine_adds_in_32_bits(engine):
    chance = np.random.default_rng(0)
    for bits in (8, 16, 64, 256, 1000):
        for logits in chance.normal(size=(50, bits)).astype(np.float32) * 10 ** chance.uniform(-3, 3):
            body, _ = query_for(engine, logits)
            given = body["query"]["script_score"]["script"]["params"] if "query" in body else {}
            weights = np.array(given.get("weights") or body["input.query(weights)"], np.float32)
            farthest = weights[weights < 0]  # the item whose bits are all wrong
            for order in (np.sort(farthest), np.sort(farthest)[::-1], chance.permutation(farthest)):
                total = np.add.accumulate(order, dtype=np.float32)[-1:].sum(dtype=np.float32)
                shift = given.get("shift", body.get("input.query(shift)"))
                assert np.float32(total) + np.float32(shift) >= 0
                assert float(total) + shift < 1e-3 * np.abs(weights).sum()


def test_files_are_small_enough_for_a_bulk_request_and_long_texts_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("crovca.servers.export._FILE_BYTES", 3_000)
    texts = ["w" * 40_000, *("x" * 200 for _ in range(40))]
    with HashIndex.create(tmp_path / "index", 16) as index:
        index.add(np.arange(41), Codes.from_bits(np.eye(41, 16, dtype=bool)), {"text": texts})
        for engine in TARGETS:
            done = export(index, engine, tmp_path / engine)
            sizes = {file.name: file.stat().st_size for file in (tmp_path / engine).glob("items-*.ndjson")}
            assert sorted(sizes) == done.files and len(sizes) > 3
            assert sorted(sizes.values())[-2] <= 3_000  # an item alone may be larger
            assert len(list(lines_of(tmp_path / engine))) == (41 if engine == "vespa" else 82)
            firsts = [file.read_text().splitlines()[0] for file in (tmp_path / engine).glob("items-*.ndjson")]
            assert all(line.startswith(('{"index"', '{"put"')) for line in firsts)  # no item is cut in two
    for engine in ("elasticsearch", "opensearch"):  # a longer term is an error there
        properties = json.loads((tmp_path / engine / "index.json").read_text())["mappings"]["properties"]
        assert properties["text"] == {"type": "keyword", "ignore_above": 8191}


@pytest.mark.parametrize("id", ["", "ü" * 257])
def test_an_id_that_an_engine_refuses_is_refused_here(tmp_path, id):
    with HashIndex.create(tmp_path / "index", 16) as index:
        index.add([id, "a"], Codes.from_bits(np.eye(2, 16, dtype=bool)))
        with pytest.raises(InvalidInputError, match="expected 1 to 512"):
            export(index, "elasticsearch", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["\0", "\x0b", "\x1f", "\ufdd0", "\U0001ffff"])
def test_a_character_that_vespa_refuses_is_refused_here(tmp_path, bad):
    other = bad.replace("\0", "\1")
    cases = [("a", f"x{bad}"), (f"{other}a", "x"), ("a", "\t\n\r \x7f\x85é\ufffe\U0001f600")]
    for at, (id, text) in enumerate(cases):
        with HashIndex.create(tmp_path / f"index{at}", 16) as index:
            index.add([id], Codes.from_bits(np.eye(1, 16, dtype=bool)), {"text": [text]})
            assert export(index, "elasticsearch", tmp_path / f"elastic{at}").items == 1
            if at == 2:
                assert export(index, "vespa", tmp_path / "out").items == 1
            else:
                with pytest.raises(InvalidInputError, match=("column 'text'", "the id")[at]):
                    export(index, "vespa", tmp_path / "out")


def test_a_whole_number_that_vespa_cannot_hold_is_refused(tmp_path):
    codes = Codes.from_bits(np.eye(2, 16, dtype=bool))
    for name, largest in (("fits", 2**63 - 1), ("not", 2**63)):
        with HashIndex.create(tmp_path / name, 16) as index:
            index.add(["a", "b"], codes, {"n": np.array([largest, 0], np.uint64)})
            assert export(index, "opensearch", tmp_path / f"{name}-opensearch").items == 2  # unsigned_long
            if name == "fits":
                assert export(index, "vespa", tmp_path / "out").items == 2
            else:
                with pytest.raises(InvalidInputError, match=r"'n' has the value 9223372036854775808, .* 2\^63 - 1"):
                    export(index, "vespa", tmp_path / "out2")


def test_metadata_get_the_engines_types(tmp_path, capsys):
    day = datetime.datetime(1911, 5, 3, 12, tzinfo=datetime.UTC)
    columns = {
        "place": ["Bern", None],
        "year": [1911, 1950],
        "score": [0.5, None],
        "ok": [True, False],
        "day": [day, day],
    }
    with HashIndex.create(tmp_path / "index", 16) as index:
        index.add(["a/ü.jpg", "b"], Codes.from_bits(np.eye(2, 16, dtype=bool)), columns)
    kinds = {
        "elasticsearch": {"place": "keyword", "year": "long", "score": "double", "ok": "boolean", "day": "date"},
        "vespa": {"place": "string", "year": "long", "score": "double", "ok": "bool", "day": "string"},
    }
    said = run_json(capsys, "index", "export", tmp_path / "index", "--for", "elasticsearch", "-o", tmp_path / "es")
    assert said["items"] == 2
    properties = json.loads((tmp_path / "es" / "index.json").read_text())["mappings"]["properties"]
    assert {name: properties[name]["type"] for name in columns} == kinds["elasticsearch"]
    lines = list(lines_of(tmp_path / "es"))
    rows = {action["index"]["_id"]: item for action, item in zip(lines[::2], lines[1::2], strict=True)}
    assert rows["a/ü.jpg"]["day"].startswith("1911-05-03T12:00:00") and "place" not in rows["b"]
    with HashIndex.open(tmp_path / "index") as index:
        export(index, "vespa", tmp_path / "vespa")
    text = (tmp_path / "vespa" / "item.sd").read_text()
    for name, kind in kinds["vespa"].items():
        assert f"field {name} type {kind} " in text
    assert "not tried against a real server" in (tmp_path / "vespa" / "README.md").read_text()


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(tmp_path, capsys):
    with HashIndex.create(tmp_path / "index", 16) as index:
        index.add(["a", "b"], Codes.from_bits(np.eye(2, 16, dtype=bool)), {"score": [float("nan"), 1.0]})
        with pytest.raises(InvalidInputError, match="nan, which vespa cannot hold"):
            export(index, "vespa", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(ConfigError, match="not for 'solr'"):
            export(index, "solr", tmp_path / "out")
    for name in ("a b", "_id", "word0", "documentid"):  # what one of them keeps for itself
        with HashIndex.create(tmp_path / name, 16) as index:
            index.add(["a"], Codes.from_bits(np.eye(1, 16, dtype=bool)), {name: [1]})
            with pytest.raises(InvalidInputError, match=f"'{name}' has a name"):
                export(index, "elasticsearch", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    asked = ("index", "export", tmp_path / "index", "--for", "vespa", "-o", tmp_path / "out", "--force")
    fails(capsys, *asked)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"
    with HashIndex.open(tmp_path / "index") as index, pytest.raises(OutputExistsError):
        export(index, "vespa", tmp_path / "out")
