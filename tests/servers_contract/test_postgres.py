"""What is PostgreSQL's own: shards, pgvector, SQL conditions, tables that are not ours."""

import threading

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from crovca.errors import ConfigError, InvalidInputError, ServerError
from crovca.servers import postgres, postgres_link
from crovca.servers.connection import connect, create
from crovca.servers.postgres import PostgresServer
from crovca.servers.shards import sharding_sql
from tests.servers_contract.conftest import open_sharded
from tests.servers_contract.samples import queries_for, sample, truth


def run(server, command):
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(command)
        return cursor.fetchall() if cursor.description else None


def test_shards_sort_for_themselves_and_hold_their_part(servers):
    ids, codes, metadata = sample(600, 64)
    with open_sharded(servers, 64) as cluster:
        cluster.upsert(ids, codes, metadata)
        logits = queries_for(codes, 3)
        for where, mask in ((None, np.ones(600, bool)), ("year > 2005", metadata["year"].to_numpy() > 2005)):
            plan = cluster.explain(logits[0], 100, where=where)
            assert "Merge Append" in plan
            remote = [line for line in plan.splitlines() if "Remote SQL" in line]
            assert len(remote) == 2
            for line in remote:
                assert "ORDER BY" in line
                assert "bit_count" in line
                assert where is None or "year > 2005" in line
            found = cluster.search(logits, 10, where=where, overfetch=100)
            assert found.proven.all()
            assert np.array_equal(found.ids, truth(logits, 10, "bce", ids[mask], codes[mask])[0])
        name = cluster._name
    counts = [run(servers(f"shard{at}"), f"SELECT count(*) FROM {name}_{at}")[0][0] for at in range(2)]
    assert sum(counts) == 600
    assert min(counts) > 200


def test_a_sharded_table_has_the_columns_that_it_was_made_with(servers):
    ids, codes, metadata = sample(10, 64)
    with open_sharded(servers, 64) as cluster:
        with pytest.raises(ServerError, match="has no column 'extra'; add it to every shard"):
            cluster.upsert(ids, codes, metadata.append_column("extra", pa.array(range(10))))
        assert cluster.count() == 0
        with pytest.raises(ServerError, match="build one on each shard"):
            cluster.build_hnsw()
    with pytest.raises(InvalidInputError, match="one server or more"):
        sharding_sql("codes", [], bits=64)


def test_hnsw_is_opt_in_and_proves_nothing(servers):
    ids, codes, metadata = sample(3000, 64)
    url = servers.address("pgvector")
    with create(url, bits=64) as cluster:
        cluster.upsert(ids, codes, metadata)
        with pytest.raises(ServerError, match="has no HNSW index"):
            connect(url, approximate=True)
        cluster.build_hnsw()
        run(servers("pgvector"), f"ANALYZE {cluster._name}")
        logits = queries_for(codes, 5)
        expected_ids, expected = truth(logits, 10, "bce", ids, codes)
        assert np.array_equal(cluster.search(logits, 10, exact=True).ids, expected_ids)  # the index is left alone
    with connect(url, approximate=True) as cluster:
        cluster._connection.execute("SET enable_seqscan = off")  # so small a table is scanned otherwise
        found = cluster.search(logits, 10, overfetch=200)
        assert not found.proven.any()
        assert (found.distances >= expected).all()
        hits = [len(np.intersect1d(a, b)) for a, b in zip(found.ids, expected_ids, strict=True)]
        assert sum(hits) >= 30  # of 50: it does look there
        assert np.array_equal(cluster.search(logits, 10, overfetch=200, exact=True).ids, expected_ids)
        # Fewer match than the index returns: the scan answers, and that is exact.
        few = cluster.search(logits, 10, where="id < 0", overfetch=200)
        assert few.proven.all()
        assert np.array_equal(few.ids, truth(logits, 10, "bce", ids[ids < 0], codes[ids < 0])[0])


def test_an_old_pgvector_is_refused(servers, monkeypatch):
    url = servers.address("pgvector")
    with create(url, bits=64) as cluster:
        cluster.build_hnsw()
    monkeypatch.setattr(postgres, "_OLDEST_PGVECTOR", (99, 0))
    with pytest.raises(ServerError, match=r"has pgvector 0\.8\.\d+; approximate search needs"):
        connect(url, approximate=True)


def test_no_pgvector_is_said(servers):
    with create(servers.address("postgres"), bits=8) as cluster, pytest.raises(ServerError, match="has no pgvector"):
        cluster.build_hnsw()


@pytest.mark.parametrize("levels", [1, 2, 6, 40])
def test_any_number_of_levels(servers, levels):
    ids, codes, _ = sample(2000, 64)
    url = servers.address("postgres")
    with create(url, bits=64) as cluster:
        cluster.upsert(ids, codes)
        name = cluster._name
    with PostgresServer.open(servers("postgres").url, name, levels=levels) as cluster:
        logits = queries_for(codes, 5)
        for metric in ("bce", "hamming"):
            expected, _ = truth(logits, 10, metric, ids, codes)
            found = cluster.search(logits, 10, metric=metric, overfetch=10, exact=True)
            assert np.array_equal(found.ids, expected)
            found = cluster.search(logits, 10, metric=metric, overfetch=200)
            assert np.array_equal(found.ids[found.proven], expected[found.proven])
            if levels >= 6:
                assert found.proven.all()
    with pytest.raises(InvalidInputError, match="levels must be at least 1"):
        PostgresServer.open(servers("postgres").url, name, levels=0)


def test_a_condition_cannot_change_anything(servers):
    ids, codes, metadata = sample(20, 16)
    with create(servers.address("postgres"), bits=16) as cluster:
        cluster.upsert(ids, codes, metadata)
        name = cluster._name
        run(servers("postgres"), "CREATE TABLE IF NOT EXISTS victim (x int)")
        run(
            servers("postgres"),
            "CREATE OR REPLACE FUNCTION evil() RETURNS boolean LANGUAGE sql AS 'DELETE FROM victim RETURNING true'",
        )
        for where in (
            f"true); DELETE FROM {name}; --",
            f"true) LIMIT 1; DROP TABLE {name}; SELECT (true",
            "evil()",
            f"id IN (SELECT id FROM {name} FOR UPDATE)",
            "true /*",
            "",
            "pg_sleep(100) IS NOT NULL",
            "set_config('search_path', 'x', false) = 'x'",
            "pg_read_file('/etc/passwd') LIKE 'root%'",
            "ctid IS NOT NULL",
        ):
            for exact in (False, True):
                with pytest.raises(InvalidInputError, match="cannot use where = "):
                    cluster.search(np.ones((1, 16)), 3, where=where, overfetch=3, exact=exact)
        assert cluster.count() == 20
        before = cluster._value("SELECT current_setting(%s)", "statement_timeout")
        found = cluster.search(np.ones((1, 16)), 20, where="label LIKE '%a%' OR label LIKE '%s'")
        labels = metadata["label"].to_pylist()
        assert found.ids.shape[1] == sum(label in ("cat", "it's") for label in labels)
        assert cluster._value("SELECT current_setting(%s)", "statement_timeout") == before


def test_a_condition_has_an_end_and_the_session_goes_on(servers):
    ids, codes, metadata = sample(3000, 16)
    with create(servers.address("postgres"), bits=16) as cluster:
        cluster.upsert(ids, codes, metadata)
        cluster.where_timeout = 0.001
        slow = " AND ".join(["lower(upper(label)) <> 'x'"] * 90)
        with pytest.raises(InvalidInputError, match=r"took longer than 0\.001 s"):
            cluster.search(np.ones((1, 16)), 3, where=slow, overfetch=3)
        cluster.where_timeout = 10
        assert cluster.search(np.ones((1, 16)), 3, where="label IS NULL OR true").ids.shape == (1, 3)


def test_column_names_are_quoted(servers):
    ids, codes, _ = sample(2, 8)
    names = ['say "x"', "50%", "Select", "a b; --", "%s"]
    with create(servers.address("postgres"), bits=8) as cluster:
        cluster.upsert(ids, codes, pa.table({name: [1, 2] for name in names}))
        assert cluster.get(ids).metadata.column_names == names
        assert cluster.search(np.ones((1, 8)), where='"50%" = 1').ids.tolist() == [[ids[0]]]


def test_every_type_of_metadata(servers):
    table = pa.table(
        {
            "i8": pa.array([1, None], pa.int8()),
            "u8": pa.array([255, None], pa.uint8()),
            "u16": pa.array([65535, None], pa.uint16()),
            "u32": pa.array([2**32 - 1, None], pa.uint32()),
            "u64": pa.array([2**64 - 1, None], pa.uint64()),
            "f16": pa.array(np.array([0.5, 2], np.float16)),
            "f32": pa.array([0.25, None], pa.float32()),
            "f64": pa.array([float("inf"), None], pa.float64()),
            "text": pa.array(["", None], pa.large_string()),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "none": pa.nulls(2),
        }
    )
    ids, codes, _ = sample(2, 8)
    with create(servers.address("postgres"), bits=8) as cluster:
        cluster.upsert(ids, codes, table)
        found = cluster.get(ids).metadata.to_pylist()
        assert found[0] == {**table.to_pylist()[0], "f16": 0.5}
        assert found[1] == {**dict.fromkeys(table.column_names), "f16": 2.0, "kind": "b"}
        with pytest.raises(ServerError, match="0x00"):
            cluster.upsert(ids, codes, pa.table({"text": ["a\0b", "c"]}))
        assert cluster.get(ids).metadata.to_pylist() == found


def test_an_upsert_of_equal_items_writes_nothing(servers):
    ids, codes, metadata = sample(50, 64)
    with create(servers.address("postgres"), bits=64) as cluster:
        cluster.upsert(ids, codes, metadata)
        before = run(servers("postgres"), f"SELECT id, xmin::text FROM {cluster._name} ORDER BY id")
        cluster.upsert(ids, codes, metadata.select(metadata.column_names[::-1]))
        assert run(servers("postgres"), f"SELECT id, xmin::text FROM {cluster._name} ORDER BY id") == before


def test_a_search_sees_one_state(servers, monkeypatch):
    """A write between its two statements changes nothing."""
    ids, codes, _ = sample(500, 64)
    url = servers.address("postgres")
    with create(url, bits=64) as cluster, connect(url) as other:
        cluster.upsert(ids, codes)
        original = cluster.within

        def within(query, distance, where):
            writer = threading.Thread(target=lambda: other.delete(ids))
            writer.start()
            writer.join()
            return original(query, distance, where)

        monkeypatch.setattr(cluster, "within", within)
        logits = queries_for(codes, 1)
        found = cluster.search(logits, 10, overfetch=10, exact=True)
        assert np.array_equal(found.ids, truth(logits, 10, "bce", ids, codes)[0])
        assert cluster.count() == 0


def test_schemas(servers):
    run(servers("postgres"), 'CREATE SCHEMA IF NOT EXISTS "Archive"')
    address = servers("postgres").url
    ids, codes, _ = sample(3, 8)
    with PostgresServer.create(address, "Archive.Codes 100%", bits=8) as cluster:
        cluster.upsert(ids, codes)
    with PostgresServer.open(address, "Archive.Codes 100%") as cluster:
        assert cluster.count() == 3
    with pytest.raises(ServerError, match=r"there is a table 'Archive\.Codes 100%' already"):
        PostgresServer.create(address, "Archive.Codes 100%", bits=8)
    with pytest.raises(ConfigError, match=r"NAME or SCHEMA\.NAME"):
        PostgresServer.open(address, "a.b.c")
    with pytest.raises(ServerError, match=r"does not exist"):
        PostgresServer.create(address, "nowhere.codes", bits=8)


def test_tables_that_are_not_ours(servers):
    address = servers("postgres").url
    run(servers("postgres"), "CREATE TABLE IF NOT EXISTS foreign_one (id bigint, code text, crovca_digest bigint)")
    with pytest.raises(ServerError, match="is not one of crovca's"):
        PostgresServer.open(address, "foreign_one")
    with pytest.raises(ServerError, match="there is no table 'nothing'; make it with create"):
        PostgresServer.open(address, "nothing")


def test_an_old_server_is_refused(servers, monkeypatch):
    monkeypatch.setattr(postgres_link, "_OLDEST", 990000)
    with pytest.raises(ServerError, match="bit_count needs 14 or newer"):
        PostgresServer.open(servers("postgres").url, "codes")


def test_a_server_that_goes_away(servers):
    ids, codes, _ = sample(3, 8)
    with create(servers.address("postgres"), bits=8) as cluster:
        pid = cluster._connection.info.backend_pid
        run(servers("postgres"), f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(ServerError, match="PostgreSQL: "):
            cluster.upsert(ids, codes)
        with pytest.raises(ServerError, match="PostgreSQL: the connection is closed"):
            cluster.count()
