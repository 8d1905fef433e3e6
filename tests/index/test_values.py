"""Metadata and ids stay what they were given as, or are refused by name."""

import datetime as dt
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crovca import Codes, HashIndex, load_embeddings
from crovca.data.embeddings import as_embeddings
from crovca.data.encoded import Encoded
from crovca.errors import FileFormatError, InvalidInputError
from crovca.ids import as_ids, id_hashes, tie_order
from crovca.index.metadata import columns_of, most_frequent, read_table
from crovca.servers.rows import ServerRows, json_rows
from tests.test_cli import run_json

BERLIN = pa.timestamp("us", "Europe/Berlin")
NOON = dt.datetime(2024, 7, 1, 12)


def test_a_zero_character_inside_text_stays(tmp_path):
    """Arrow reads NumPy's text no further than that."""
    ids, codes = np.array(["\0a", "b\0c", "b"]), Codes.from_bits(np.eye(3, 16, dtype=bool))
    with HashIndex.create(tmp_path / "index", 16) as index:
        index.add(ids, codes, {"text": np.array(["x\0y", "\0", "x"])})
        assert index.get(ids).metadata["text"].to_pylist()[0] == "x\0y" and index.verify() == []
        assert index.contains(["b", "\0a", ""]).tolist() == [True, True, False]
    with pytest.raises(InvalidInputError, match="may have no zero character"):
        ServerRows.of(ids, codes, None, bits=16, id_type="string")


LATER = {
    "struct gains a field": (pa.array([{"a": 1}]), pa.array([{"a": 2, "b": 3}]), None),
    "struct lacks a field": (pa.array([{"a": 1, "b": 2}]), pa.array([{"a": 2}]), None),
    "struct in other order": (
        pa.array([{"a": 1, "b": 2}]),
        pa.array([{"b": 2, "a": 1}], pa.struct([("b", pa.int64()), ("a", pa.int64())])),
        {"a": 1, "b": 2},
    ),
    "date, then time": (pa.array([dt.date(2024, 1, 1)]), pa.array([NOON]), None),
    "time, then date": (pa.array([NOON]), pa.array([dt.date(2024, 1, 1)]), None),
    "bool, then ints": (pa.array([True]), pa.array([7]), None),
    "ints, then bool": (pa.array([7]), pa.array([True]), None),
    "float32, then float64": (pa.array([1.5], pa.float32()), pa.array([16777217.0]), None),
    "float32, then what fits": (pa.array([1.5], pa.float32()), pa.array([2.5]), 2.5),
    "float16, then 70000": (pa.array(np.array([1.5], np.float16)), pa.array([70000.0]), None),
    "list<float32>, then rounded": (pa.array([[1.5]], pa.list_(pa.float32())), pa.array([[0.1]]), None),
    "int, then text 007": (pa.array([1]), pa.array(["007"]), None),
    "int8, then 300": (pa.array([1], pa.int8()), pa.array([300]), None),
    "int, then 1.5": (pa.array([1]), pa.array([1.5]), None),
    "float, then 2**53+1": (pa.array([1.0]), pa.array([2**53 + 1]), None),
    "float, then int": (pa.array([1.5]), pa.array([3]), 3.0),
    "utc, then naive": (pa.array([NOON], BERLIN), pa.array([NOON]), None),
    "naive, then zoned": (pa.array([NOON]), pa.array([NOON], BERLIN), None),
    "decimal, then float": (pa.array([Decimal("1.10")]), pa.array([1.239]), None),
    "float, then decimal": (pa.array([1.1]), pa.array([Decimal("12345678901234567890.12")]), None),
    "text, then int": (pa.array(["a"]), pa.array([5]), None),
    "text, then bytes": (pa.array(["a"]), pa.array([b"b"]), None),
    "text, then categories": (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), "b"),
    "list<bool>, then list<int>": (pa.array([[True]]), pa.array([[7, 0]]), None),
    "list, then text": (pa.array([["a"]]), pa.array(["a"]), None),
}


@pytest.mark.parametrize("name", LATER)
def test_a_later_write_stores_a_value_as_it_is_or_refuses_it(name, tmp_path):
    first, second, expected = LATER[name]
    codes = Codes.from_bits(np.eye(1, 8, dtype=int))
    with HashIndex.create(tmp_path / "index", bits=8) as index:
        index.add([0], codes, {"c": first})
        if expected is None:
            with pytest.raises(InvalidInputError, match=r"the metadata column 'c' is .* so far, and .* here"):
                index.add([1], codes, {"c": second})
            assert len(index) == 1
        else:
            index.add([1], codes, {"c": second})
            assert index.get([1]).metadata.column("c").to_pylist() == [expected]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"place": "Bern"}, "'place' must have one value for each item, got one str"),
        ({"b": b"abcd"}, "got one bytes"),
        ({"n": 5}, "got one int"),
        ({"s": {1, 2, 3, 4}}, "got one set"),
        ({"s": {"a": 1}}, "got one dict"),
        ([{"y": 1, "p": 2}] * 4, "got list; make a table of records by"),
        ({"v": np.zeros((4, 2))}, "'v' cannot be stored"),
        ({"t": [1, "a", 2.5, None]}, "'t' cannot be stored"),
        ({"a": [1, 2, 3, 4], "b": [1]}, "equal length, got"),
    ],
)
def test_what_is_no_column_is_refused_by_name(values, message, tmp_path):
    with HashIndex.create(tmp_path / "index", bits=8) as index:
        with pytest.raises(InvalidInputError, match=message):
            index.add(list("abcd"), Codes.from_bits(np.eye(4, 8, dtype=int)), values)
        assert len(index) == 0
        index.add(list("abcd"), Codes.from_bits(np.eye(4, 8, dtype=int)), {"g": (n for n in range(4))})
        assert index.get(["c"]).metadata.to_pylist() == [{"g": 2}]


@pytest.mark.parametrize(
    ("ids", "csv", "expected"),
    [
        (["12345678901234567890", "12345678901234567891"], "id,v\n12345678901234567890,a\n", ["a", None]),
        (["007", "7", "08"], "id,v\n007,a\n", ["a", None, None]),
        (["1.10", "1.1"], "id,v\n1.10,a\n", ["a", None]),
        (["1e3", "1000"], "id,v\n1e3,a\n", ["a", None]),
        (["2020-01-01", "b"], "id,v\n2020-01-01,a\n", ["a", None]),
        (["true", "TRUE"], "id,v\ntrue,a\n", ["a", None]),
        (["a", "b"], "\ufeffid,v\na,x\nb,y\n", ["x", "y"]),
        (["a", "b"], "id,v\na,01067\nb,20\n", ["01067", "20"]),
        (["a", "b"], "id,v\na,12345678901234567890\nb,1\n", ["12345678901234567890", "1"]),
        (["a", "b"], "id,v\na,9007199254740993\nb,1.5\n", ["9007199254740993", "1.5"]),
        (["a", "b"], "id,v\na,0.1234567890123456789\nb,1\n", ["0.1234567890123456789", "1"]),
        (["a", "b"], "id,v\na,1e400\nb,inf\n", ["1e400", "inf"]),
        (["a", "b"], "id,v\na,0.10000000000000001\nb,-inf\n", [0.1, float("-inf")]),
        (["a", "NA", "null", ""], "id,v\na,NA\nNA,DE\nnull,FR\n,CH\n", ["NA", "DE", "FR", "CH"]),
        ([7, 10], "id,v\n10,2\n7,1.5\n", [1.5, 2.0]),
    ],
)
def test_csv_ids_are_those_that_stand_there(ids, csv, expected, tmp_path):
    (tmp_path / "m.csv").write_text(csv, encoding="utf-8")
    found, missing = columns_of(np.array(ids), read_table(tmp_path / "m.csv"))
    assert found.column("v").to_pylist() == expected
    assert missing == expected.count(None)


@pytest.mark.parametrize(
    ("ids", "keys"),
    [
        (["2020-01-01"], pa.array([dt.date(2020, 1, 1)])),
        (["7"], pa.array([7])),
        ([7], pa.array(["007"])),
        ([7], pa.array([7.0])),
        ([7], pa.array(["99999999999999999999"])),
        (["true"], pa.array([True])),
    ],
)
def test_ids_of_another_kind_are_refused_by_name(ids, keys, tmp_path):
    pq.write_table(pa.table({"id": keys, "v": [1]}), tmp_path / "m.parquet")
    with pytest.raises(InvalidInputError, match=r"the metadata's ids are .*, like .*, those of the items"):
        columns_of(np.array(ids), read_table(tmp_path / "m.parquet"))


def test_categories_are_the_text_that_they_are(tmp_path):
    pq.write_table(pa.table({"id": pa.array(["a", "b"]).dictionary_encode(), "v": [1, 2]}), tmp_path / "m.parquet")
    assert columns_of(np.array(["b", "c"]), read_table(tmp_path / "m.parquet"))[0].to_pydict() == {"v": [2, None]}
    (tmp_path / "twice.csv").write_text("id,v\n1,a\n1,b\n")
    with pytest.raises(FileFormatError, match="an id occurs twice"):
        read_table(tmp_path / "twice.csv")


def test_ids_beyond_int64_are_refused_at_every_entrance(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    ids = np.array([1, 2**63 + 5, 2**64 - 1], np.uint64)
    np.savez(tmp_path / "a.npz", embeddings=values, ids=ids)
    pq.write_table(pa.table({"embeddings": list(values), "ids": ids}), tmp_path / "a.parquet")
    codes = Codes.from_logits(values)
    with HashIndex.create(tmp_path / "index", bits=8) as index:
        for entrance in (
            lambda: load_embeddings(tmp_path / "a.npz"),
            lambda: load_embeddings(tmp_path / "a.parquet"),
            lambda: as_embeddings(values, ids=ids),
            lambda: Encoded(codes, ids=ids),
            lambda: index.add(ids, codes),
            lambda: index.add(ids.tolist(), codes),
            lambda: index.add([-1, 2**63, 3], codes),
            lambda: tie_order(ids, 3),
            lambda: columns_of(ids, pa.table({"id": [1], "v": [1]})),
        ):
            with pytest.raises(InvalidInputError, match=r"(to|at most) 2\^63 - 1, got"):
                entrance()
        assert len(index) == 0


def test_one_long_id_costs_its_own_bytes():
    ids = [f"i{n}" for n in range(20_000)]
    ids[5] = "x" * 4000
    found = as_ids(ids)
    assert found.dtype == object and found.tolist() == ids
    assert as_ids(ids[6:]).dtype.kind == "U"
    assert (id_hashes(found)[6:] == id_hashes(as_ids(ids[6:]))).all()


def test_hashes_of_ids_are_the_same_for_ever():
    assert id_hashes(np.array([0, -1, 7])).tolist() == KNOWN[0]
    assert id_hashes(np.array(["", "a", "abcdefgh", "abcdefghi", "é" * 9]), 3).tolist() == KNOWN[1]


KNOWN = [
    [16467744205524398373, 5236422289148167227, 4226922219821352084],
    [2092789425003139053, 15730810857653219652, 9383850745235077329, 4170971699775747506, 4361001788201762662],
]


def test_nanoseconds_are_shown_and_sent_as_microseconds_and_stay_in_the_index(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # Arrow asks for it, and it is not among our dependencies
    at = 1_700_000_000_123_456_789
    stamps = pa.array([at, None], pa.timestamp("ns", "UTC"))
    columns = {
        "at": stamps,
        "clock": pa.array([123_456_789, None], pa.time64("ns")),
        "took": pa.array([1_999, None], pa.duration("ns")),
        "several": pa.array([[at], None], pa.list_(pa.timestamp("ns"))),
        "inside": pa.array([{"at": at}, None], pa.struct([("at", pa.timestamp("ns"))])),
        "named": pa.array([[("at", at)], None], pa.map_(pa.string(), pa.timestamp("ns"))),
    }
    shown = dt.datetime(2023, 11, 14, 22, 13, 20, 123456)
    with HashIndex.create(tmp_path / "index", bits=8) as index:
        index.add([1, 2], Codes.from_bits(np.eye(2, 8, dtype=int)), columns)
        found = index.search(np.ones((1, 8), np.float32), k=2)
        row = next(row for row in found.to_list()[0] if row["id"] == 1)["metadata"]
        assert row["at"].replace(tzinfo=None) == row["several"][0] == row["inside"]["at"] == shown
        assert row["named"] == [("at", shown)]
        assert row["clock"] == dt.time(microsecond=123456) and row["took"] == dt.timedelta(microseconds=1)
        assert index.get([1]).metadata.column("at").cast(pa.int64()).to_pylist() == [at]
    index = tmp_path / "index"
    said = run_json(capsys, "search", index, "--id", 2, "-k", 1)
    assert said["results"][0]["hits"][0]["metadata"]["at"].startswith("2023-11-14 22:13:20.123456")
    rows = json_rows(pa.table({"at": stamps}), "any")
    assert rows == [{"at": "2023-11-14T22:13:20.123456+00:00"}, {}]
    counted = [pa.table({"value": stamps.drop_null(), "items": [3]})]
    assert most_frequent(counted, 1) == [(shown.replace(tzinfo=dt.UTC), 3)]
