"""One table over several PostgreSQL servers: the SQL that sets it up, with nothing but ``postgres_fdw``.

The table that is searched is partitioned by a hash of the id over foreign tables, one on each shard. A search is
sent to all shards, each sorts for itself and returns no more than is asked for, and the answers are merged in order.

On the coordinating server, before what ``sharding_sql`` returns, once (credentials are yours to give)::

    CREATE EXTENSION postgres_fdw;
    CREATE SERVER shard0 FOREIGN DATA WRAPPER postgres_fdw
        OPTIONS (host '10.0.0.1', dbname 'codes', async_capable 'true', fetch_size '10000', batch_size '1000');
    CREATE USER MAPPING FOR CURRENT_USER SERVER shard0 OPTIONS (user 'crovca', password '...');
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from crovca.codes import check_bits
from crovca.errors import InvalidInputError
from crovca.servers.postgres_sql import column_type, columns_sql, identifier
from crovca.servers.rows import IdType


def sharding_sql(
    table: str,
    servers: Sequence[str],
    *,
    bits: int,
    id_type: IdType = "int64",
    columns: Mapping[str, pa.DataType] | None = None,
) -> tuple[list[str], str]:
    """SQL for a table spread over servers.

    Args:
        table: its name; on shard i it is ``table_i``.
        servers: names that ``CREATE SERVER`` gave the shards, on the coordinating server.
        bits: length of the codes.
        id_type: what ids are.
        columns: the metadata, which later pushes cannot add to.

    Returns:
        One statement to run on each shard, and the statements to run on the coordinating server after.
    """
    if not servers:
        raise InvalidInputError("a table is spread over one server or more, got none")
    check_bits(bits)
    metadata = "".join(f", {identifier(name)} {column_type(name, kind)}" for name, kind in (columns or {}).items())
    parts = [identifier(f"{table}_{at}") for at in range(len(servers))]
    on_shards = [f"CREATE TABLE {part} ({columns_sql(bits, id_type)}{metadata});" for part in parts]
    # No primary key: foreign tables have none. Each shard's own key and the partition by id make ids unique.
    own = columns_sql(bits, id_type, key=False)
    here = [f"CREATE TABLE {identifier(table)} ({own}{metadata}) PARTITION BY HASH (id);"]
    here += [
        f"CREATE FOREIGN TABLE {part} PARTITION OF {identifier(table)} "
        f"FOR VALUES WITH (MODULUS {len(servers)}, REMAINDER {at}) SERVER {identifier(server)};"
        for at, (part, server) in enumerate(zip(parts, servers, strict=True))
    ]
    return on_shards, "\n".join(here)
