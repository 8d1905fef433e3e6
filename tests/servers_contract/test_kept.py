"""Embeddings that are pushed along: a server orders candidates by them as the index does."""

from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest

from crovca import HashIndex
from crovca.errors import InvalidInputError, ServerError
from crovca.index import view
from crovca.servers.kept import kept_embeddings, with_kept
from crovca.servers.push import push
from tests.servers_contract.samples import queries_for, sample


@pytest.mark.parametrize("keep", ["int8", "float16"])
def test_a_server_rescores_as_the_index_does(make, kind, keep, tmp_path, monkeypatch):
    if kind == "sharded":
        pytest.skip("a table over shards takes no columns that it was not made with")
    monkeypatch.setattr(view, "_SKETCHES", (0, 0))  # which servers do not have
    ids, codes, metadata = sample(300, 64)
    embeddings = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    logits, asked = queries_for(codes, 5), embeddings[:5] + 0.1
    cluster = make(64)
    with closing(HashIndex.create(tmp_path / "index", bits=64, keep=keep)) as index:
        index.add(ids, codes, metadata, embeddings)
        push(index, cluster)
        with pytest.raises(InvalidInputError, match="no embeddings here: push them along"):
            cluster.search(logits, 3, rescore=4, embeddings=asked)
        done = push(index, cluster, embeddings=True)
        assert (done.written, done.unchanged) == (300, False)
        assert push(index, cluster, embeddings=True).unchanged
        for k in (1, 3, 1000):
            expected = index.search(logits, k, rescore=4, embeddings=asked)
            found = cluster.search(logits, k, rescore=4, embeddings=asked, exact=True)
            assert found.metric == expected.metric == "cosine" and found.proven.all()
            np.testing.assert_allclose(found.distances, expected.distances, atol=1e-6)
            assert np.array_equal(found.ids, expected.ids)
        none = cluster.search(logits, 3, rescore=4, embeddings=asked, where="id < -1000")
        assert none.ids.shape == (5, 0)
        for wrong, message in (
            ({"embeddings": asked}, "embeddings beside queries are for rescoring"),
            ({"rescore": 4}, "give those of the queries"),
            ({"rescore": 0.5, "embeddings": asked}, "at least 1"),
            ({"rescore": 4, "embeddings": asked[:2]}, "2 embeddings for 5 queries"),
            ({"rescore": 4, "embeddings": asked[:, :7]}, "embeddings of 24 numbers, the queries' have 7"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                cluster.search(logits, 3, **wrong)
        assert push(index, cluster).written == 300  # they are taken away again
        with pytest.raises(InvalidInputError, match="no embeddings here"):
            cluster.search(logits, 3, rescore=4, embeddings=asked)


def test_what_cannot_be_pushed_or_read_is_said(tmp_path):
    ids, codes, _ = sample(10, 64)
    with closing(HashIndex.create(tmp_path / "index", bits=64)) as index:
        index.add(ids, codes)

        class Cluster:
            bits, id_type = 64, "int64"

        with pytest.raises(InvalidInputError, match="keeps no embeddings"):
            push(index, Cluster(), embeddings=True)
    kept = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    table = with_kept(pa.table({"year": [1, 2, 3]}), kept)
    assert np.array_equal(kept_embeddings(table, 4), kept)
    halves = kept.astype(np.float16) / 3
    assert np.array_equal(kept_embeddings(with_kept(None, halves), 4), halves)
    with pytest.raises(InvalidInputError, match="'crovca_int8' has the name"):
        with_kept(table, kept)
    with pytest.raises(ServerError, match="does not hold what was pushed"):
        kept_embeddings(pa.table({"crovca_int8": ["no base64!"]}), 4)
