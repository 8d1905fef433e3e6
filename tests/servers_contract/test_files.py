"""What is special to databases that are files: the index's answers, names, conditions, bad files."""

import datetime
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from crovca import HashIndex
from crovca.errors import ConfigError, InvalidInputError, ServerError
from crovca.servers import sqlite_vec
from crovca.servers.connection import connect, create
from crovca.servers.push import push
from tests.servers_contract.conftest import FILES
from tests.servers_contract.samples import queries_for, sample, truth

sql = pytest.mark.parametrize("engine", ["duckdb", "sqlite"])
METRICS = ["hamming", "asymmetric_hamming", "bce"]


@pytest.fixture(params=FILES)
def engine(request):
    return request.param


@pytest.fixture
def url(engine, tmp_path):
    return f"{engine}://{tmp_path}/codes?table=items"


@pytest.mark.parametrize("bits", [48, pytest.param(200, marks=pytest.mark.slow)])
def test_a_file_answers_as_the_index_does(url, tmp_path, bits):
    ids, codes, metadata = sample(2000, bits)  # more than the candidates that are asked for first
    logits = queries_for(codes, 4)
    conditions = [
        None,
        "year >= 2005 AND NOT seen",
        "label = 'dog' OR label IS NULL OR score > 1.5",
        "label LIKE 'c%' AND length(label) = 3 AND year IN (1991, 2001)",
        "id < -40",
    ]
    with HashIndex.create(tmp_path / "index", bits) as index, create(url, bits=bits) as file:

        def same():
            push(index, file, batch_size=1000)
            assert file.count() == len(index)
            for metric in METRICS:
                for where in conditions:
                    there = file.search(logits, 20, metric=metric, where=where, exact=True)
                    here = index.search(logits, 20, metric=metric, where=where)
                    np.testing.assert_array_equal(there.ids, here.ids)
                    np.testing.assert_array_equal(there.distances, here.distances)
                    assert there.proven.all()

        index.add(ids[:1750], codes[:1750], metadata[:1750])
        same()
        index.upsert(ids[1500:], codes[:500], metadata[1500:])
        index.delete(ids[:350])
        same()
        index.delete(index.search(logits, 150).ids.ravel())
        same()


def test_most_answers_are_proven_at_once(url, engine):
    ids, codes, _ = sample(20_000, 64)
    with create(url, bits=64) as file:
        file.upsert(ids, codes)
        logits = queries_for(codes, 20)
        for metric in METRICS:
            found = file.search(logits, 10, metric=metric)
            expected, _ = truth(logits, 10, metric, ids, codes)
            assert np.array_equal(found.ids[found.proven], expected[found.proven])
            assert found.candidates.tolist() == [1000] * 20
            if metric == "hamming" or engine == "duckdb":
                assert found.proven.all()


def test_several_tables_in_a_file(url, engine):
    ids, codes, metadata = sample(20, 16)
    names = ["items", 'it"s; DROP TABLE items; --', "a b.c%3F", "née", "select", "x' OR 'x'='x", "data.csv"]
    if engine == "lancedb":
        with pytest.raises(ServerError, match="Invalid table name"):
            create(url.replace("=items", "=a b; --"), bits=16)
        names = ["items", "a.b", "a-b"]
    for at, name in enumerate(names):
        address = url.replace("=items", "=" + name.replace("%", "%25").replace(";", "%3B"))
        with create(address, bits=16) as file:
            file.upsert(ids[: at + 1], codes[: at + 1], metadata[: at + 1])
    for at, name in enumerate(names):
        address = url.replace("=items", "=" + name.replace("%", "%25").replace(";", "%3B"))
        with connect(address) as file:
            assert file.count() == at + 1
            assert file.search(np.ones((1, 16)), 30, where="year > 0").ids.shape == (1, at + 1)
            file.delete(ids)
            assert file.count() == 0


def test_columns_may_have_any_name(url, engine):
    ids, codes, _ = sample(2, 8)
    names = ['say "x"', "50%", "Select", "a b; --", "?", "Né", "crovca_rank"]
    odd = ["tick`ed", "a.b", "_distance", "_rowid"]
    names += odd if engine != "lancedb" else []
    with create(url, bits=8) as file:
        file.upsert(ids, codes, pa.table({name: [1, 2] for name in names}))
        assert file.get(ids).metadata.column_names == names
        assert file.search(np.ones((1, 8)), where='"?" = 1 AND "SAY ""X""" = 1').ids.tolist() == [[ids[0]]]
        with pytest.raises(InvalidInputError, match="has no name"):
            file.upsert(ids, codes, pa.table({"": [1, 2]}))
        for name in odd if engine == "lancedb" else []:
            with pytest.raises(InvalidInputError, match="LanceDB can have no metadata column"):
                file.upsert(ids, codes, pa.table({name: [1, 2]}))
        for twice in (pa.table({"SELECT": [1, 2]}), pa.table({"b": [1, 2], "B": [3, 4]}), pa.table({"ID": [1, 2]})):
            with pytest.raises(InvalidInputError, match="in case alone"):
                file.upsert(ids, codes, twice)
        assert file.get(ids).metadata.column_names == names


def test_a_condition_sees_the_items_and_nothing_else(url, engine, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    ids, codes, metadata = sample(50, 16)
    with create(url, bits=16) as file:
        file.upsert(ids, codes, metadata)
        for where in (
            "true); DELETE FROM items; --",
            "true) OR (true",
            "true) UNION SELECT 1, 2, 3 --",
            "id IN (SELECT id FROM items)",
            f"(SELECT count(*) FROM read_csv('{secret}')) > 0",
            f"read_csv('{secret}') IS NULL",
            f"read_text('{secret}') IS NULL",
            f"readfile('{secret}') IS NULL",
            "load_extension('x') IS NULL",
            f"writefile('{tmp_path}/new', 'x') IS NULL",
            "getenv('HOME') = 'x'",
            "EXISTS (SELECT 1)",
            "random() > 0",
            "year > ?",
            "year > $1",
            "code IS NOT NULL",
            "crovca_digest = 1",
            "rowid = 1",
            "crovca_rank = 1",
            "crovca_tables.bits = 16",
            "true /*",
            "",
            *(["year"] if engine == "duckdb" else ["strftime('%Y') > '1'", "DATE '2001-02-03' > 'a'", "rowid > 0"]),
            *(["year", "label", "file('x') > 'a'", "dictGet('a', 'b', id) > 0"] if engine == "chdb" else []),
            "year >",
        ):
            for exact in (False, True):
                with pytest.raises(InvalidInputError, match=r"(cannot use where = |where must be)[^\n]*$"):
                    file.search(np.ones((1, 16)), 3, where=where, overfetch=3, exact=exact)
        assert file.count() == 50
        assert not (tmp_path / "new").exists()
        assert file.search(np.ones((1, 16)), 60, where="true").ids.shape == (1, 50)


def test_a_condition_has_an_end_and_the_work_goes_on(url):
    ids, codes, metadata = sample(30_000, 16)
    with create(url, bits=16) as file:
        file.upsert(ids, codes, metadata)
        file.where_timeout = 0.001
        slow = " AND ".join(["lower(upper(label)) <> 'x'"] * 90)
        with pytest.raises(InvalidInputError, match=r"took longer than 0\.001 s"):
            file.search(np.ones((1, 16)), 3, where=slow, overfetch=3)
        file.where_timeout = 10
        assert file.search(np.ones((1, 16)), 3, where="label IS NULL OR true").ids.shape == (1, 3)
        file.delete(ids[:10])
        assert file.count() == 29_990


def test_a_failed_write_leaves_nothing(url):
    ids, codes, metadata = sample(10, 16)
    with create(url, bits=16) as file:
        file.upsert(ids, codes, metadata.select(["year"]))
        for years in (["soon"] * 10, ["7"] * 10, [1.5] * 10):
            with pytest.raises(InvalidInputError, match=r"^the metadata column 'year' is [^\n]* so far"):
                file.upsert(ids, codes, pa.table({"new": range(10), "year": years}))
        assert file.get(ids).metadata.to_pydict() == metadata.select(["year"]).to_pydict()
        file.upsert(ids, codes, pa.table({"year": pa.array([7] * 10, pa.int64())}))
        assert file.get(ids).metadata.to_pydict() == {"year": [7] * 10}


def test_every_type_of_metadata(url, engine):
    ids, codes, _ = sample(2, 8)
    table = pa.table(
        {
            "i8": pa.array([-1, None], pa.int8()),
            "u32": pa.array([2**32 - 1, None], pa.uint32()),
            "i64": pa.array([-(2**63), None], pa.int64()),
            "f16": pa.array(np.array([0.5, 2], np.float16)),
            "f64": pa.array([1e300, None], pa.float64()),
            "flag": pa.array([True, None]),
            "text": pa.array(["", None], pa.large_string()),
            "kind": pa.array(["a\0b", "b"]).dictionary_encode(),
            "none": pa.nulls(2),
        }
    )
    odd = pa.table({"x": pa.array([2**64 - 1, 0], pa.uint64())}), pa.table({"y": [float("nan"), float("-inf")]})
    with create(url, bits=8) as file:
        file.upsert(ids, codes, table)
        found = file.get(ids).metadata.to_pylist()
        table = table.drop_columns("none")  # no type, no column
        assert found[0] == {**table.to_pylist()[0], "f16": 0.5}
        assert found[1] == {**dict.fromkeys(table.column_names), "f16": 2.0, "kind": "b"}
        for one in odd:
            if engine == "sqlite":
                with pytest.raises(InvalidInputError, match=r"column '[xy]' .* SQLite cannot hold"):
                    file.upsert(ids, codes, one)
                assert file.get(ids).metadata.to_pylist() == found
            else:
                file.upsert(ids, codes, one)
                name = one.column_names[0]
                assert str(file.get(ids).metadata[name].to_pylist()) == str(one[name].to_pylist())


@sql
def test_files_that_are_not_ours(engine, url, tmp_path):
    path = tmp_path / "codes"
    with pytest.raises(ServerError, match=r"there is no file .*; make it with create"):
        connect(url)
    assert not path.exists()
    path.write_bytes(b"Hello! " * 2000)
    for function in (connect, lambda url: create(url, bits=8)):
        with pytest.raises(ServerError, match=rf"^cannot open {path}: [^\n]*(not a|valid)[^\n]*database[^\n]*$"):
            function(url)
        with pytest.raises(ServerError, match=r"there is no file|cannot open"):
            function(f"{engine}://{tmp_path}/nowhere/codes?table=a")
        with pytest.raises(ServerError, match=r"there is no file|cannot open"):
            function(f"{engine}://{tmp_path}?table=a")
        with pytest.raises(ServerError, match=r"too long|cannot open"):
            function(f"{engine}://{tmp_path}/{'x' * 3000}?table=a")
    assert path.read_bytes() == b"Hello! " * 2000
    for other in ("duckdb", "sqlite"):
        create(f"{other}://{tmp_path}/of-{other}?table=items", bits=8).close()
        if other != engine:
            with pytest.raises(ServerError, match=r"^cannot open [^\n]*$"):
                connect(f"{engine}://{tmp_path}/of-{other}?table=items")
    with pytest.raises(ConfigError, match="approximate search is PostgreSQL's"):
        connect(url, approximate=True)


@sql
def test_tables_that_are_not_ours(url, engine):
    with create(url, bits=8) as file:
        file._do("CREATE TABLE other (id BIGINT, code BIGINT)")
    with pytest.raises(ServerError, match="there is no table 'other' of crovca's"):
        connect(url.replace("=items", "=other"))
    for name in ("other", "ITEMS"):
        with pytest.raises(ServerError, match=r"^[^\n]*already exists[^\n]*$"):
            create(url.replace("=items", f"={name}"), bits=8)
    with connect(url) as file:
        file._do("DROP TABLE items")
        with pytest.raises(ServerError, match=r"^[^\n]*items[^\n]*$"):
            file.count()
    file.close()
    with pytest.raises(ServerError, match=r"(?i)^[^\n]*closed[^\n]*$"):
        file.count()


HOLD = {
    "duckdb": "import duckdb; held = duckdb.connect(sys.argv[1])",
    "sqlite": "import sqlite3; held = sqlite3.connect(sys.argv[1]); held.execute('BEGIN EXCLUSIVE')",
}


@sql
@pytest.mark.starts
def test_a_file_that_another_process_has(url, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_vec, "_LOCK_WAIT", 0.1)
    ids, codes, _ = sample(3, 8)
    create(url, bits=8).close()
    command = [sys.executable, "-c", f"import sys; {HOLD[engine]}; print('held', flush=True); input()"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "codes")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ServerError, match=r"^[^\n]*lock[^\n]*$"), connect(url) as file:
            file.upsert(ids, codes)
        process.communicate("\n")
    with connect(url) as file:
        file.upsert(ids, codes)
        assert file.count() == 3


@sql
def test_paths_below_the_working_folder(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create(f"{engine}://Some%20file.db?table=a", bits=8).close()
    assert (tmp_path / "Some file.db").exists()
    connect(f"{engine}://{tmp_path}/Some file.db?table=a").close()


def test_folders_that_are_not_lances(tmp_path):
    url = f"lancedb://{tmp_path}/folder?table=items"
    with pytest.raises(ServerError, match=r"there is no table 'items' in .*; make it with create"):
        connect(url)
    assert not (tmp_path / "folder").exists()
    (tmp_path / "file").write_text("a")
    with pytest.raises(ServerError, match=r"LanceDB: .*exists"):
        create(f"lancedb://{tmp_path}/file?table=items", bits=8)
    create(url, bits=8).close()
    import lancedb

    other = lancedb.connect(tmp_path / "folder").create_table("other", schema=pa.schema([("id", pa.int64())]))
    with pytest.raises(ServerError, match="'other' was not made by crovca"):
        connect(url.replace("=items", f"={other.name}"))
    (tmp_path / "folder" / "empty.lance").mkdir()
    with pytest.raises(ServerError, match=r"^LanceDB: [^\n]*empty"):
        connect(url.replace("=items", "=empty"))
    with pytest.raises(ConfigError, match="approximate search is PostgreSQL's"):
        connect(url, approximate=True)


@pytest.mark.slow
@pytest.mark.starts
def test_what_is_special_to_clickhouse(tmp_path):
    url = f"chdb://{tmp_path}/folder?table=items"
    ids, codes, _ = sample(3, 8)
    with pytest.raises(ServerError, match=r"there is no file .*; make it with create"):
        connect(url)
    assert not (tmp_path / "folder").exists()
    with create(url, bits=8) as folder:
        for odd in ({"day": [datetime.date(1899, 12, 31)] * 3}, {"a\\b": [1, 2, 3]}):
            with pytest.raises(InvalidInputError, match="ClickHouse"):
                folder.upsert(ids, codes, pa.table(odd))
        folder.upsert(ids, codes, pa.table({"day": [datetime.date(1900, 1, 1), None, datetime.date(2299, 12, 31)]}))
        assert folder.search(np.ones((1, 8)), where="day < DATE '2000-01-01'").ids.tolist() == [[ids[0]]]
        assert folder.search(np.ones((1, 8)), where="CAST(id AS DOUBLE) < -45").ids.tolist() == [[ids[0]]]
        with pytest.raises(InvalidInputError, match="out of bounds"):  # ClickHouse's Date begins in 1970
            folder.search(np.ones((1, 8)), where="CAST(day AS DATE) < DATE '2000-01-01'")
        with pytest.raises(ServerError, match=r"cannot open .* already initialized with path"):
            create(f"chdb://{tmp_path}/other?table=items", bits=8)
        command = f"import sys; from crovca.servers.connection import connect; connect({url!r})"
        found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        assert "ServerError: cannot open" in found.stderr
    with pytest.raises(ServerError, match="closed"):
        folder.count()
    (tmp_path / "file").write_text("a")
    with pytest.raises(ServerError, match="cannot open"):
        create(f"chdb://{tmp_path}/file?table=items", bits=8)
    moments = {"at": [datetime.datetime(2020, 7, 1, 12)] * 3}
    for zone in ("UTC", "America/New_York", "UTC"):  # of the machine: it is no part of a time that has none
        command = (
            f"import datetime, numpy as np, pyarrow as pa; from crovca.servers.connection import connect\n"
            f"from tests.servers_contract.samples import sample; ids, codes, _ = sample(3, 8)\n"
            f"with connect({url!r}) as folder:\n"
            f"    folder.upsert(ids, codes, pa.table({moments!r}))\n"
            f"    found = folder.get(ids).metadata.column('at').to_pylist()\n"
            f"    assert found == {moments['at']!r}, found\n"
            f"    for where in (\"at = TIMESTAMP '2020-07-01 12:00:00'\", \"at < '2020-07-01 12:00:01'\"):\n"
            f"        assert folder.search(np.ones((1, 8)), where=where).ids.shape == (1, 3)\n"
        )
        asked = {**os.environ, "TZ": zone, "PYTHONPATH": os.pathsep.join(sys.path)}
        found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=asked)
        assert found.returncode == 0, (zone, found.stderr)
    with connect(url) as folder:
        assert folder.count() == 3


def test_a_table_of_lancedb_that_another_program_made_anew(tmp_path):
    url = f"lancedb://{tmp_path}/codes?table=a"
    with create(url, bits=64) as first:
        first.upsert(*sample(20, 64)[:2])
        shutil.rmtree(tmp_path / "codes")
        ids, codes, _ = sample(20, 256)
        with create(url, bits=256) as second:
            second.upsert(ids, codes)
            for use in (lambda: first.upsert(*sample(20, 64)[:2]), lambda: first.search(np.ones((1, 64)))):
                with pytest.raises(ServerError, match="LanceDB"):
                    use()
            assert second.get(ids).codes == codes
