"""The script of the docs that spreads the tables over hosts knows all of them."""

import re

from letopis.store.database.migrations import STORE
from letopis.store.database.schema import metadata
from tests.support.servers.citus import SCRIPT

DIVIDED = {table.name for table in metadata.tables.values() if "partition" in table.columns}


def test_every_table_is_spread_by_its_partition_or_copied_to_each_host() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    spread = re.findall(r"create_distributed_table\('(\w+)', 'partition', colocate_with => '(\w+)'\)", script)
    copied = re.findall(r"create_reference_table\('(\w+)'\)", script)

    assert {name for name, _ in spread} == DIVIDED
    assert len(spread) == len(DIVIDED)
    assert sorted(copied) == sorted({*metadata.tables, STORE.version_table} - DIVIDED)
    assert spread[0][1] == "none"
    assert {beside for _, beside in spread[1:]} == {spread[0][0]}, "each beside the first"
