"""``crovca index push`` of a real index to a real server, and the same answers there."""

import numpy as np
import pytest

from crovca import Codes, HashIndex
from crovca.servers.connection import connect
from tests.servers_contract.conftest import FILES
from tests.test_cli import run, run_json


@pytest.mark.parametrize("server", ["postgres", *FILES])
def test_an_index_and_the_server_it_was_pushed_to_answer_alike(servers, server, tmp_path, capsys):
    url = servers.address(server)
    rng = np.random.default_rng(0)
    codes = Codes.from_bits(rng.random((50, 40))[rng.integers(0, 50, 2000)] < 0.5)
    ids = [f"photo {n}" for n in range(2000)]
    with HashIndex.create(tmp_path / "index", 40) as index:
        index.add(ids, codes, {"year": np.arange(2000) % 100})
        index.delete(ids[:100])
    first = run_json(capsys, "index", "push", tmp_path / "index", "--to", url)
    assert (first["items"], first["written"], first["unchanged"]) == (1900, 1900, False)
    assert run_json(capsys, "index", "push", tmp_path / "index", "--to", url)["unchanged"] is True
    run("index", "delete", tmp_path / "index", "--where", "year >= 90")
    run("index", "push", tmp_path / "index", "--to", url)
    assert "0 written, 190 deleted" in capsys.readouterr().out
    logits = rng.normal(size=(3, 40))
    with connect(url) as cluster, HashIndex.open(tmp_path / "index") as index:
        for metric in ("hamming", "asymmetric_hamming", "bce"):
            for where in (None, "year < 7"):
                there = cluster.search(logits, 30, metric=metric, where=where, exact=True)
                here = index.search(logits, 30, metric=metric, where=where)
                np.testing.assert_array_equal(there.ids, here.ids)
                np.testing.assert_array_equal(there.distances, here.distances)
                assert there.proven.all()
