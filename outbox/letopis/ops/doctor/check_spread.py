"""Check how Citus spreads the tables of a history store over hosts."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from letopis.ops.doctor.finding import Finding, fail, ok, warn
from letopis.store.database.citus import INSTALLED
from letopis.store.database.schema import metadata

_CHECK: Final = "store_spread"
_SCRIPT: Final = "run distribute.sql of the documentation"
_TABLES: Final = sa.text(
    "SELECT logicalrelid::regclass::text, column_to_column_name(logicalrelid, partkey), colocationid"
    " FROM pg_dist_partition"
)
_SHARDS: Final = sa.text(
    "SELECT count(*), count(DISTINCT groupid) FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)"
    " WHERE logicalrelid = 'letopis_events'::regclass"
)
_SETTING: Final = sa.text("SELECT current_setting(:name)")
_PARTITIONS: Final = sa.text("SELECT count(*) FROM letopis_log_heads")
_SETTINGS: Final = {"citus.override_table_visibility": "off", "citus.max_adaptive_executor_pool_size": "1"}


async def check_spread(connection: Any) -> Finding | None:
    """Return a finding about the hosts of a store; ``None`` where the database is not one of Citus."""
    if connection.dialect.name != "postgresql" or (await connection.execute(sa.text(INSTALLED))).first() is None:
        return None
    tables = {name: (column, group) for name, column, group in await connection.execute(_TABLES)}
    if "letopis_events" not in tables:
        return ok(_CHECK, "Citus is installed, and the tables are not spread: they lie on one host")
    _, own = tables["letopis_events"]
    wrong = [
        table.name
        for table in metadata.sorted_tables
        if table.name not in tables
        or tables[table.name] != (("partition", own) if "partition" in table.columns else (None, tables[table.name][1]))
    ]
    if wrong:
        return fail(
            _CHECK, f"not spread as the others are: {', '.join(wrong)}", f"{_SCRIPT}, its lines of these tables"
        )
    shards, hosts = (await connection.execute(_SHARDS)).one()
    partitions = (await connection.execute(_PARTITIONS)).scalar_one()
    spread = f"spread over {hosts} hosts: {partitions} partitions in {shards} shards"
    for name, wanted in _SETTINGS.items():
        if (value := (await connection.execute(_SETTING, {"name": name})).scalar_one()) != wanted:
            return warn(
                _CHECK, f"{spread}; {name} is {value}, not {wanted}", f"{_SCRIPT}, its lines with ALTER DATABASE"
            )
    if partitions < shards:
        return warn(
            _CHECK, f"{spread}, some of which stay empty", "spread them over a quarter as many shards as partitions"
        )
    return ok(_CHECK, spread)
