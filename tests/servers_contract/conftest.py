"""Real servers, started once a session; a test whose server is not installed here is skipped and says so.

Databases that are files need none.
"""

import itertools
import os
from contextlib import ExitStack

import psycopg
import pytest

from crovca.servers.connection import create
from crovca.servers.postgres import PostgresServer
from crovca.servers.shards import sharding_sql
from tests.conftest import group_of
from tests.servers import launch
from tests.servers_contract.samples import sample

FILES = ["duckdb", "sqlite", "lancedb", "chdb"]
IN_PROCESS = [*FILES, "qdrant"]  # they need no server
_numbers = itertools.count()


class Servers:
    """Starts a server when it is first asked for."""

    def __init__(self, folder):
        self._folder = folder
        self._started = {}
        self._ends = {}

    def __call__(self, name):
        if name == "milvus" and "milvus" not in os.environ["PYTEST_CURRENT_TEST"]:
            pytest.fail("a test that needs Milvus has 'milvus' in its name or parameters: that is what groups them")
        if name not in self._started:
            end = self._ends[name] = ExitStack()
            try:
                self._started[name] = end.enter_context(STARTERS[name]())
            except launch.Missing as reason:
                self._started[name] = reason
        if isinstance(self._started[name], launch.Missing):
            if os.environ.get("CROVCA_SERVERS") == "required":
                pytest.fail(f"{self._started[name]}, and CROVCA_SERVERS=required: run 'make servers'")
            pytest.skip(str(self._started[name]))
        return self._started[name]

    def before_the_end_of(self, name, callback):
        self._ends[name].callback(callback)

    def stop(self, name):
        self._started.pop(name, None)
        self._ends.pop(name, ExitStack()).close()

    def stop_all(self):
        for name in list(self._ends):
            self.stop(name)

    def address(self, kind):
        """Address of a collection that is not there yet."""
        name = f"codes{next(_numbers)}"
        if kind == "chdb":  # a process can have one folder
            return f"chdb://{self._folder}/chdb?table={name}"
        if kind in IN_PROCESS:
            return f"{kind}://{self._folder}/{name}?table={name}"
        if kind == "milvus":
            return f"{self('milvus')}/{name}"
        return f"{self(kind).url}?table={name}"


STARTERS = {
    "postgres": lambda: launch.postgres(launch.debian_postgres()),
    "shard0": lambda: launch.postgres(launch.debian_postgres()),
    "shard1": lambda: launch.postgres(launch.debian_postgres()),
    "pgvector": lambda: launch.postgres(launch.pgvector_postgres()),
    "milvus": launch.milvus,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What needs a server says so."""
    for item in items:
        parameters = set(map(str, item.callspec.params.values())) if hasattr(item, "callspec") else set()
        in_process = not parameters.isdisjoint(IN_PROCESS)
        if "chdb" in parameters:
            item.add_marker(pytest.mark.slow)
        if "servers" in getattr(item, "fixturenames", ()) and not in_process:
            item.add_marker(pytest.mark.servers)
            item.add_marker(pytest.mark.starts)


@pytest.hookimpl(trylast=True)  # when the test's own connections are closed
def pytest_runtest_teardown(item, nextitem):
    """Milvus is busy even when nobody asks: it ends with its last test."""
    last = nextitem is None or group_of(nextitem.nodeid) != "milvus"
    if group_of(item.nodeid) == "milvus" and last and "servers" in item.funcargs:
        item.funcargs["servers"].stop("milvus")


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    opened = Servers(tmp_path_factory.mktemp("servers"))
    yield opened
    opened.stop_all()


@pytest.fixture(params=["postgres", "pgvector", "sharded", "milvus", *IN_PROCESS])
def kind(request):
    """Every server that there is."""
    return request.param


@pytest.fixture
def make(kind, servers, milvus_collections):
    """Makes an empty collection; they are closed in the end."""
    with ExitStack() as stack:

        def make(bits, id_type="int64"):
            if kind == "milvus":
                return milvus_collections(bits, id_type)
            if kind == "sharded":
                return stack.enter_context(open_sharded(servers, bits, id_type))
            return stack.enter_context(create(servers.address(kind), bits=bits, id_type=id_type))

        yield make


@pytest.fixture(scope="session")
def milvus_collections(servers):
    """Emptied and used again, one for each kind of code: making one takes seconds."""
    made = {}

    def empty(bits, id_type):
        if (bits, id_type) not in made:
            made[bits, id_type] = create(servers.address("milvus"), bits=bits, id_type=id_type)
            servers.before_the_end_of("milvus", made[bits, id_type].close)
        cluster = made[bits, id_type]
        for ids in list(cluster.stored_ids()):
            cluster.delete(ids)
        cluster._client.alter_collection_properties(cluster._collection, {"crovca.push": ""})
        assert cluster.count() == 0
        return cluster

    return empty


def open_sharded(servers, bits, id_type="int64"):
    """A table over two servers; the first of them coordinates nothing but its own shard."""
    coordinator, shards = servers("postgres"), [servers("shard0"), servers("shard1")]
    name = f"codes{next(_numbers)}"
    columns = {field.name: field.type for field in sample(1, 8)[2].schema}
    on_shards, here = sharding_sql(name, ["shard0", "shard1"], bits=bits, id_type=id_type, columns=columns)
    for shard, command in zip(shards, on_shards, strict=True):
        with psycopg.connect(shard.url, autocommit=True) as connection:
            connection.execute(command)
    with psycopg.connect(coordinator.url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
        for at, shard in enumerate(shards):
            connection.execute(
                f"CREATE SERVER IF NOT EXISTS shard{at} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', "
                f"port '{shard.port}', dbname 'postgres', async_capable 'true', fetch_size '10000', batch_size '1000')"
            )
            connection.execute(
                f"CREATE USER MAPPING IF NOT EXISTS FOR CURRENT_USER SERVER shard{at} "
                f"OPTIONS (user 'postgres', password '{shard.password}')"
            )
        connection.execute(here)
    return PostgresServer.open(coordinator.url, name)
