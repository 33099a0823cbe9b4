"""Every statement of a delivery and of the reads of a conversation can be sent to one partition."""

import re
from pathlib import Path

import pytest

from letopis.store import ConversationStore
from letopis.store.database.dialects import PostgreSQL
from letopis.store.database.schema import metadata
from tests.support.statements import DIVIDED, Statement, faults_of, hot_statements


async def test_every_hot_statement_names_its_partition_and_no_state_of_the_server(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db", partitions=16) as store:
        statements = await hot_statements(store)

    faults = {one.text: found for one in statements if (found := faults_of(one))}
    assert not faults
    touched = {table for table in DIVIDED for one in statements if re.search(rf"\b{table}\b", one.text)}
    seldom = {"letopis_checkpoints", "letopis_record_parts", "letopis_record_tags"}
    assert touched | seldom == DIVIDED, "a table that no hot statement touches proves nothing"


def test_an_overwrite_of_postgresql_names_the_partition() -> None:
    for table in metadata.tables.values():
        text = PostgreSQL()._overwrite(table)
        assert ("t.partition = ANY" in text) == ("partition" in table.columns), table.name


def test_positions_and_keys_come_from_no_sequence() -> None:
    for table in metadata.tables.values():
        assert table.autoincrement_column is None, table.name
        assert all(column.identity is None and column.default is None for column in table.columns), table.name


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM letopis_events WHERE conversation_id = ?",
        "SELECT * FROM letopis_owners JOIN letopis_lanes ON letopis_lanes.lane = ? WHERE letopis_owners.partition = ?",
        "UPDATE letopis_lanes SET sequence = ? WHERE conversation_id = ?",
        "SELECT nextval('letopis_search_id_seq')",
        "INSERT INTO letopis_lanes (partition, recorded_at) VALUES (?, now())",
        "SELECT pg_advisory_xact_lock(1)",
    ],
)
def test_the_rule_finds_what_is_planted(text: str) -> None:
    assert faults_of(Statement(text, ()))
