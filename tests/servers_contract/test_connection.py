"""Addresses, and all that can be wrong with them: one clear line, and never the password."""

import builtins
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crovca.errors import ConfigError, InvalidInputError, MissingDependencyError, ServerError
from crovca.servers import milvus as milvus_module
from crovca.servers.connection import SCHEMES, connect, create
from crovca.servers.milvus import MilvusServer
from tests.servers_contract.conftest import FILES
from tests.servers_contract.samples import queries_for, sample, truth


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("codes", "cannot begin with 'codes'"),
        ("mysql://a:secret@b/c", "cannot begin with 'mysql'"),
        ("", "cannot begin with ''"),
        ("postgresql://u:secret@h/db", "has to name one table"),
        ("postgresql://u:secret@h/db?table=", "has to name one table"),
        ("postgresql://h/db?table=a&table=b", "has to name one table"),
        ("postgresql://u:secret@h/db?table=a&nonsense=1", "no PostgreSQL address .*nonsense"),
        ("milvus://u:secret@h", "needs a host and one collection"),
        ("milvus://h/a/b", "needs a host and one collection"),
        ("milvus:///codes", "needs a host and one collection"),
        ("milvus://h:port/codes", "no usable port"),
        ("milvus://h/codes?table=a", "unknown parameter 'table'"),
        ("duckdb:///file", "has to name the file and one table"),
        ("duckdb://?table=a", "has to name the file and one table"),
        ("duckdb:///file?table=", "has to name the file and one table"),
        ("duckdb:///file?table=a&table=b", "has to name the file and one table"),
        ("duckdb:///file?table=a&mode=ro", "has to name the file and one table"),
        ("duckdb:///a%00b?table=a", "has to name the file and one table"),
        ("sqlite:///file?table=crovca_tables", "a name as only crovca's own tables have"),
        ("duckdb:///file?table=Crovca_Given", "a name as only crovca's own tables have"),
        ("lancedb:///folder?table=crovca_push", "a name as only crovca's own tables have"),
    ],
)
def test_addresses_that_cannot_be_used(url, message):
    for function in (connect, lambda url: create(url, bits=8)):
        with pytest.raises(ConfigError, match=message) as caught:
            function(url)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_no_text_ends_in_a_traceback(text):
    files = [f"{kind}://{text}?table=a" for kind in FILES]
    for url in (text, f"milvus://{text.replace('/', '')}", f"postgresql://{text}?nonsense=1&table=a", *files):
        with pytest.raises((ConfigError, ServerError)):
            connect(url)


@pytest.mark.parametrize("url", ["postgresql://u:secret@127.0.0.1:1/db?table=a", "milvus://u:secret@127.0.0.1:1/a"])
def test_a_server_that_is_not_there(url, monkeypatch):
    monkeypatch.setattr(milvus_module, "_TIMEOUT", 0.5)
    with pytest.raises(ServerError, match=r"cannot connect to .* at .*127\.0\.0\.1:1: ") as caught:
        connect(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password(servers):
    url = servers.address("postgres").replace("secret", "gue55")
    with pytest.raises(ServerError, match="password authentication failed") as caught:
        connect(url)
    assert "gue55" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("postgresql://h/d?table=a", "psycopg"),
        ("milvus://h/a", "pymilvus"),
        ("sqlite://a?table=b", "apsw"),
        ("lancedb://a?table=b", "lancedb"),
        ("chdb://a?table=b", "chdb"),
        ("qdrant://a?table=b", "qdrant_edge"),
    ],
)
def test_a_driver_that_is_missing(url, package, monkeypatch):
    original = builtins.__import__

    def no_driver(name, *args, **options):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_driver)
    for function in (connect, lambda url: create(url, bits=8)):
        with pytest.raises(
            MissingDependencyError,
            match=rf"needs the package '{package.replace('_edge', '-edge-py')}'.*pip install 'crovca\[",
        ):
            function(url)


@pytest.mark.parametrize("server", ["postgres", "milvus", *FILES])
def test_what_is_there_already(servers, server):
    url = servers.address(server)
    with pytest.raises(ServerError, match=r"there is no (table|collection|file)"):
        connect(url)
    with pytest.raises(InvalidInputError, match="bits must lie between 1 and 4,096"):
        create(url, bits=5000)
    create(url, bits=13, id_type="string").close()
    with pytest.raises(ServerError, match=r"there is a (table|collection) .* already"):
        create(url, bits=13, id_type="string")
    with create(url, bits=13, id_type="string", exist_ok=True) as cluster:
        assert (cluster.bits, cluster.id_type) == (13, "string")
    for bits, id_type in ((16, "string"), (13, "int64")):
        with pytest.raises(ServerError, match="holds codes of 13 bits with ids of type string, expected"):
            create(url, bits=bits, id_type=id_type, exist_ok=True)


def test_milvus_has_limits_and_says_so(servers, milvus_collections):
    cluster = milvus_collections(13, "int64")
    assert isinstance(cluster, MilvusServer)
    with pytest.raises(InvalidInputError, match="at most 16,384 items a query, got k = 16385"):
        cluster.search([[1.0] * 13], 16385)
    with pytest.raises(InvalidInputError, match="overfetch = 20000"):
        cluster.search([[1.0] * 13], 10, overfetch=20000)
    with pytest.raises(ConfigError, match="PostgreSQL's"):
        connect(servers.address("milvus"), approximate=True)
    ids, codes, _ = sample(17_000, 13)
    cluster.upsert(ids, codes)
    with pytest.raises(ServerError, match="more than the 16,384 that Milvus returns"):
        cluster.search([[1.0] * 13], 16384, exact=True)
    found = cluster.search([[1.0] * 13], 9000)
    assert found.candidates.tolist() == [16384]


def dropped_by_another_process(servers, url):
    """The collection; this process's pymilvus does not hear of it."""
    name = url.rpartition("/")[2]
    address = servers("milvus").replace("milvus", "http")
    code = f"import pymilvus; pymilvus.MilvusClient({address!r}).drop_collection({name!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_milvus_collection_that_another_process_made_anew(servers, monkeypatch):
    """pymilvus cut what it sent by the schema that it had seen first: of four codes three were garbage, unsaid."""
    url = servers.address("milvus")
    ids, codes, _ = sample(400, 256)
    with create(url, bits=64) as first:
        first.upsert(*sample(400, 64)[:2])
        dropped_by_another_process(servers, url)
        with create(url, bits=256) as second:
            with monkeypatch.context() as before, pytest.raises(ServerError, match=r"not hold the item .* as it was"):
                before.setattr(milvus_module, "_forget_schemas", lambda client: None)
                second.upsert(ids, codes)
            second.upsert(ids, codes)
            assert second.get(ids).codes == codes
            logits = queries_for(codes, 5)
            found = second.search(logits, 10, overfetch=400)
            assert np.array_equal(found.ids, truth(logits, 10, "bce", ids, codes)[0])
        for use in (lambda: first.upsert(ids, codes.prefix(64)), lambda: first.get(ids[:3])):
            with pytest.raises(ServerError, match=r"anew: it holds codes of 256 bits .* expected 64 bits"):
                use()


def test_milvus_refuses_what_json_cannot_hold(milvus_collections):
    ids, codes, _ = sample(2, 13)
    cluster = milvus_collections(13, "int64")
    with pytest.raises(InvalidInputError, match="'x' has the value nan, which Milvus cannot hold"):
        cluster.upsert(ids, codes, pa.table({"x": [1.0, float("nan")]}))
    assert cluster.count() == 0


@pytest.mark.starts
def test_drivers_are_loaded_when_they_are_used():
    code = (
        "import crovca.servers.push, crovca.servers.shards, sys;"
        "drivers = {'torch', 'psycopg', 'pymilvus', 'duckdb', 'apsw', 'lancedb', 'chdb', 'qdrant_edge'};"
        "sys.exit(bool(drivers & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Fake:
    """A server of another kind."""

    @classmethod
    def open_url(cls, url, *, approximate=False):
        return ("opened", url, approximate)

    @classmethod
    def create_url(cls, url, *, bits, id_type, exist_ok):
        return ("created", url, bits, id_type, exist_ok)


def test_a_server_is_its_class_and_a_line_of_the_table(monkeypatch):
    monkeypatch.setitem(SCHEMES, "fake", f"{__name__}:Fake")
    assert connect("fake://x", approximate=True) == ("opened", "fake://x", True)
    assert create("fake://x", bits=8) == ("created", "fake://x", 8, "int64", False)
