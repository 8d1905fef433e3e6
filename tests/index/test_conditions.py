"""Conditions: one grammar, the answers of DuckDB on a table in memory, and an end to each."""

import datetime as dt
import os
import signal
import subprocess
import sys
import threading

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crovca.errors import InvalidInputError
from crovca.index import metadata
from crovca.index.conditions import checked_condition
from crovca.index.metadata import matching_rows

COLUMNS = ["id", "year", "name", "ends", "score", "tags", "place", "Ort x"]

ALLOWED = [
    "year < 10", "YEAR BETWEEN 1 AND 20", "year IN (1, 2)", "year % 2 = 0", "year / 2 = 1", "year & 1 = 1",
    "NOT (score > 5)", "score <= 5", "score <> 1", "score >= 1", "isnan(score)", "score = 'nan'::DOUBLE",
    "score < 1", "score > 1e0", "name LIKE 'a%'", "name NOT LIKE '%b'", "name ILIKE 'É%'", "name ~ 'a'", "name IS NULL",
    "name IS NOT DISTINCT FROM 'a'", "coalesce(name, '') = ''", "lower(name) || 'x' = 'ax'", "length(trim(name)) = 2",
    "substring(name, 1, 1) = 'a'", "position('b' in name) > 0", "left(name, 1) = 'a'",
    "CASE WHEN year < 3 THEN true ELSE false END", "\"Ort x\" = 'it''s'", "true", "year = 1 -- so",
    "ends > TIMESTAMP '2020-01-01 12:00:00'", "ends::date = '2020-01-01'", "date_part('hour', ends) = 23",
    "extract(year from ends) = 2020", "ends > DATE '2020-01-01' + INTERVAL 1 DAY", "hour(ends) = 23",
    "list_contains(tags, 'x')", "'x' = ANY(tags)", "tags[1] = 'x'", "place.city = 'Bern'", "TRY_CAST(name AS INT) = 3",
    "id = '7'", "(year, id) IN ((1, 'i1'))", "regexp_matches(name, '^a')", "year IS NOT NULL AND NOT year = 3",
]  # fmt: skip

REFUSED = {
    "year <": "line 1",
    "": "one condition, got 0",
    "-- nothing": "one condition, got 0",
    "true; DROP TABLE x": "one condition, got 2",
    "true); DROP TABLE secret; --": "line 1, column 5",
    "false) UNION ALL SELECT 1, B'01', 0 --": "line 1",
    "false) OR (true": "line 1",
    "year = 1 UNION SELECT 1": "a subquery",
    "(SELECT count(*) FROM range(1000000000000)) > 0": "a subquery",
    "(SELECT max(s) FROM (WITH RECURSIVE t(s) AS (SELECT 1 UNION ALL SELECT s+1 FROM t) SELECT s FROM t)) > 0": "a sub",
    "exists (select 1)": "exists",
    "sleep_ms(10000) IS NULL": r"sleep_ms\(\)",
    "pg_sleep(100) IS NOT NULL": r"pg_sleep\(\)",
    "pg_read_file('/etc/passwd') LIKE 'root%'": r"pg_read_file\(\)",
    "query_to_xml('DELETE FROM x', true, true, '') IS NOT NULL": r"query_to_xml\(\)",
    "set_config('search_path', 'x', false) = 'x'": r"set_config\(\)",
    "current_setting('x') = 'y'": r"current_setting\(\)",
    "read_parquet('/etc/x') IS NULL": r"read_parquet\(\)",
    "length(replace(id, 'i', 'iiiiiiii')) > 0": r"replace\(\)",
    "length(repeat('x', 200000000)) > 0": r"repeat\(\)",
    "count(*) > 1": r"count\(\)",
    "row_number() OVER () = 1": "window",
    "ends > now()": r"now\(\) has another answer each time",
    "ends > current_date": "another answer each time",
    "ends > current_timestamp": "another answer each time",
    "localtimestamp > ends": "another answer each time|no column",
    "random() < 0.5": r"random\(\) has another answer each time",
    "name = current_user": "current user",
    "'secret'::regclass IS NOT NULL": "(?i)the type 'regclass'",
    "year < $1": "placeholder|parameter|no column",
    "year < ?": "placeholder",
    "year < %s": "placeholder|line 1",
    "yeer < 1": "no column 'yeer'; the columns are id, year",
    "file_row_number = 1": "no column 'file_row_number'",
    "\"crovca file\" = 'x'": "no column 'crovca file'",
    "ctid IS NOT NULL": "no column 'ctid'",
    "year < 10 /*": "tokeniz",
    "year < 10\0": "no text",
    "'\ud800' = 'x'": "no text",
    "(" * 5000 + "true" + ")" * 5000: "too deep",
    " OR ".join(["lower(name) = 'a'"] * 201): "call functions 200 times",
    "true" + " " * 70000: "65,536 characters",
}


@pytest.fixture(scope="module")
def table():
    rows = 60
    return pa.table(
        {
            "id": [f"i{n}" if n != 7 else "7" for n in range(rows)],
            "year": [n if n % 11 else None for n in range(rows)],
            "name": [[None, "a", "ab", " ab", "été", "3", "A"][n % 7] for n in range(rows)],
            "ends": pa.array([dt.datetime(2020, 1, 1 + n % 3, 23, 30) for n in range(rows)], pa.timestamp("us", "UTC")),
            "score": [float("nan") if n % 2 else n / 4 for n in range(rows)],
            "tags": [["x", "y"][: n % 3] for n in range(rows)],
            "place": [{"city": "Bern" if n % 2 else "Basel"} for n in range(rows)],
            "Ort x": ["it's" if n % 5 else "" for n in range(rows)],
        }
    )


@pytest.mark.parametrize("where", ALLOWED)
def test_the_answer_is_that_of_a_table_in_memory_however_rows_are_stored(where, table, tmp_path, monkeypatch):
    with duckdb.connect() as memory:
        memory.execute("SET TimeZone = 'UTC'")
        memory.register("given", table.append_column("row", pa.array(range(len(table)))))
        memory.execute("CREATE TABLE t AS SELECT * FROM given")
        expected = [row for (row,) in memory.execute(f"SELECT row FROM t WHERE {where}\nORDER BY row").fetchall()]
    for cut in (0, 1, 23):
        files = [tmp_path / f"{cut}-{part}.parquet" for part in range(2)]
        pq.write_table(table.slice(0, cut), files[0], row_group_size=10)
        pq.write_table(table.slice(cut), files[1], row_group_size=4)
        first, second = matching_rows(files, where)
        assert [*first.tolist(), *(cut + second).tolist()] == expected


@pytest.mark.parametrize("database", ["duckdb", "postgres", "sqlite", "lancedb"])
@pytest.mark.parametrize("where", REFUSED)
def test_what_is_no_condition_is_refused_in_one_line_by_all(where, database):
    with pytest.raises(InvalidInputError, match=REFUSED[where]) as refused:
        checked_condition(where, COLUMNS, database)
    text = str(refused.value)
    assert text.startswith("cannot use where = ") and "\n" not in text and len(text) < 1000
    with pytest.raises(InvalidInputError, match="as text, got 5"):
        checked_condition(5, COLUMNS, database)


@pytest.mark.parametrize("database", ["duckdb", "postgres", "sqlite"])
def test_what_is_sent_on_names_the_columns_as_they_are(database):
    found = checked_condition("YEAR < 10 and \"Ort x\" = 'a)b--'", COLUMNS, database)
    assert found == '"year" < 10 AND "Ort x" = \'a)b--\''
    in_backticks = checked_condition("YEAR < 10 and \"Ort x\" = 'a)`b--' or `ort x` = ''", COLUMNS, "lancedb")
    assert in_backticks == "`year` < 10 AND `Ort x` = 'a)`b--' OR `Ort x` = ''"
    assert checked_condition('"a`b" = 1', ["a`b"], "lancedb") == "`a``b` = 1"
    assert checked_condition('"Year" = 1 or year = 2', ["year", "Year"], database) == '"Year" = 1 OR "year" = 2'


SLOW = " AND ".join(f"NOT regexp_matches(concat(id, id, id), '(a|b)*c{n}(x|y)+z')" for n in range(60))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "m.parquet"
    pq.write_table(pa.table({"id": [f"abcabcabc{n}" for n in range(400_000)]}), path)
    return path


@pytest.fixture
def patient(monkeypatch):
    """A busy machine needs longer to stop a condition than others wait for it."""
    monkeypatch.setattr(metadata, "_STOPPING", 500)


@pytest.mark.starts
def test_a_condition_has_an_end(many, patient):
    with pytest.raises(InvalidInputError, match=r"took longer than 0.5 s.*where_timeout"):
        matching_rows([many], SLOW, timeout=0.5)
    assert not [one for one in threading.enumerate() if one.name == "crovca condition"]


@pytest.mark.starts
def test_ctrl_c_stops_a_condition(many, patient):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell ignores it
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            matching_rows([many], SLOW, timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [one for one in threading.enumerate() if one.name == "crovca condition"]


@pytest.mark.starts
def test_the_machines_time_zone_changes_nothing(table, tmp_path):
    pq.write_table(table, tmp_path / "m.parquet")
    script = (
        "import sys, pathlib; from crovca.index.metadata import matching_rows;"
        "print(len(matching_rows([pathlib.Path(sys.argv[1])], \"ends::date = '2020-01-01' AND hour(ends) = 23\")[0]))"
    )
    for zone in ("Asia/Tokyo",):
        ran = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "m.parquet")],
            env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ran.stdout.strip() == "20"


def test_a_value_is_no_condition(table, tmp_path):
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(InvalidInputError, match="is a value of type INTEGER"):
        matching_rows([tmp_path / "m.parquet"], "1")
    with pytest.raises(InvalidInputError, match=r"cannot use where = .*; the columns are id"):
        matching_rows([tmp_path / "m.parquet"], "lower(score, 3) = 'a'")
    assert matching_rows([], "year < 3") == []
    assert np.array_equal(matching_rows([tmp_path / "m.parquet"], "id = 'i3'")[0], [3])
