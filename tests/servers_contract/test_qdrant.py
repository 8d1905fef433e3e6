"""What is special to Qdrant: its filters, names, who has the folder, and what its dot products are wrong by."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from crovca import HashIndex
from crovca.errors import ConfigError, InvalidInputError, ServerError
from crovca.servers.connection import connect, create
from crovca.servers.push import push
from tests.servers_contract.samples import queries_for, sample


@pytest.fixture
def url(tmp_path):
    return f"qdrant://{tmp_path}/folder?table=items"


def test_filters_have_the_nulls_of_sql(url, tmp_path):
    ids, codes, metadata = sample(600, 24)
    logits = queries_for(codes, 2)
    with HashIndex.create(tmp_path / "index", 24) as index, create(url, bits=24) as shard:
        index.add(ids, codes, metadata)
        push(index, shard, batch_size=200)
        for where in (
            "year >= 2005 AND NOT seen",
            "label = 'dog' OR label IS NULL OR score > 1.5",
            "NOT (label = 'dog' OR year < 2000)",
            "label <> 'dog'",
            "NOT label <> 'dog'",
            "label NOT IN ('dog', 'it''s') AND year NOT BETWEEN 1995 AND 2010",
            "label LIKE '%a%' AND year IN (1991, 2001, 2011)",
            "NOT label LIKE 'c%'",
            "label IS NOT NULL AND 2000 <= year AND year <> 2007",
            "seen = true AND seen IN (1) AND -40 < id",
            "true AND NOT false",
        ):
            here, there = index.search(logits, 20, where=where), shard.search(logits, 20, where=where)
            assert there.proven.all()
            np.testing.assert_array_equal(there.ids, here.ids, where)
        assert shard.search(logits, 20, where="NOT true OR false").ids.shape == (2, 0)
        for where in (
            "lower(label) = 'dog'",
            "year = score",
            "year + 1 > 5",
            "label > 'a'",
            "label LIKE 'a%b'",
            "label LIKE '_a'",
            "year > 9007199254740993",
            "1 = 1",
            "year IS TRUE",
            "id IN (SELECT id FROM items)",
            "crovca_digest = 1",
        ):
            with pytest.raises(InvalidInputError, match="cannot use where = "):
                shard.search(logits, 3, where=where)


def test_conditions_are_answered_from_indexes_and_of_columns_of_mixed_kinds_as_well(url):
    ids, codes, _ = sample(4, 8)
    with create(url, bits=8) as shard:
        shard.upsert(ids[:2], codes[:2], pa.table({"n": [1, 2], "t": ["a", None], "crovca_int8": ["AA==", "AQ=="]}))
        assert set(shard._shard.info().payload_schema) == {"id", "n", "t"}  # kept embeddings are asked for by nobody
        shard.upsert(ids[2:], codes[2:], pa.table({"n": ["1", "x"], "t": [1.5, 2.0]}))
        for where, found in (("n = 1", [0]), ("n = '1'", [2]), ("n IS NOT NULL", [0, 1, 2, 3]), ("t IS NULL", [1]),
                             ("t > 1", [2, 3]), ("t = 'a'", [0]), ("n <> 'x' AND t < 2", [2])):  # fmt: skip
            assert sorted(shard.search(np.ones((1, 8)), where=where).ids[0]) == sorted(ids[found]), where
    with connect(url) as shard:
        assert set(shard._shard.info().payload_schema) == {"id", "n", "t"}


@pytest.mark.parametrize(("bits", "scale"), [(64, 1e-30), (256, 1.0), (1000, 1e20)])
def test_answers_are_proven_whatever_the_size_of_logits(url, tmp_path, bits, scale):
    ids, codes, _ = sample(3000, bits)
    logits = queries_for(codes, 5, scale=scale)
    logits[0] = 0
    with HashIndex.create(tmp_path / "index", bits) as index, create(url, bits=bits) as shard:
        index.add(ids, codes)
        shard.upsert(ids, codes)
        for metric in ("hamming", "asymmetric_hamming", "bce"):
            expected = index.search(logits, 10, metric=metric)
            for exact in (True, False):
                found = shard.search(logits, 10, metric=metric, exact=exact)
                same = slice(None) if exact else found.proven
                assert np.array_equal(found.ids[same], expected.ids[same])
                assert np.array_equal(found.distances[same], expected.distances[same])
        if scale >= 1:  # smaller ones vanish beside bits / 2
            assert shard.search(logits, 10, metric="asymmetric_hamming").proven[1:].mean() > 0.7


@pytest.mark.starts
def test_names_and_folders(url, tmp_path):
    ids, codes, _ = sample(3, 8)
    with pytest.raises(ServerError, match="there is no table 'items'"):
        connect(url)
    for name in ("..%2Fother", "a b", ".hidden"):
        with pytest.raises(ConfigError, match="Qdrant can have no table"):
            create(f"qdrant://{tmp_path}?table={name}", bits=8)
    with pytest.raises(ConfigError, match="approximate search is PostgreSQL's"):
        connect(url, approximate=True)
    with create(url, bits=8) as shard:
        names = ["a.b", "a[0]", "née", "?", "Select"]
        shard.upsert(ids, codes, pa.table({name: [1, 2, 3] for name in names}))
        for name in names:
            assert shard.search(np.ones((1, 8)), where=f'"{name}" = 2').ids.tolist() == [[ids[1]]]
        for name, message in (('a"b', "cannot have the name"), ("A.B", "in case alone")):
            with pytest.raises(InvalidInputError, match=message):
                shard.upsert(ids, codes, pa.table({name: [1, 2, 3]}))
        with pytest.raises(ServerError, match="there is a table 'items' already"):
            create(url, bits=8)
        command = f"from crovca.servers.connection import connect; connect({url!r})"
        found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        assert "ServerError: Qdrant: " in found.stderr
    with connect(url) as shard:
        assert shard.count() == 3
    with pytest.raises(ServerError, match="Qdrant: "):
        shard.count()
