"""Every statement of a delivery and of the reads of a conversation can be sent to one partition."""

import re
from pathlib import Path

import pytest

from letopis.store import ConversationActivated, ConversationStarted, ConversationStore, Message
from letopis.store.database import citus
from letopis.store.database.dialects import PostgreSQL
from letopis.store.database.schema import metadata
from letopis.store.model.identifiers import partition_of
from letopis.store.testing.outbox import Outbox
from tests.support.statements import DIVIDED, Statement, faults_of, hot_statements, statements_of


async def test_every_hot_statement_names_its_partition_and_no_state_of_the_server(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db", partitions=16) as store:
        statements = await hot_statements(store)

    faults = {one.text: found for one in statements if (found := faults_of(one))}
    assert not faults
    touched = {table for table in DIVIDED for one in statements if re.search(rf"\b{table}\b", one.text)}
    seldom = {"letopis_checkpoints", "letopis_record_parts", "letopis_record_tags"}
    assert touched | seldom == DIVIDED, "a table that no hot statement touches proves nothing"


async def test_every_hot_statement_binds_the_partition_of_each_table_for_citus(
    fresh_postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(citus, "INSTALLED", "SELECT 1")
    async with ConversationStore.open(fresh_postgresql_url, migrate=True, partitions=16) as store:
        statements = await hot_statements(store)

    faults = {one.text: found for one in statements if (found := faults_of(one, bound=True))}
    assert not faults
    refused = re.compile("WITH |INSERT .* SELECT ")
    assert not [one.text for one in statements if refused.match(one.text)]


async def test_a_delivery_holds_its_partition_on_its_host_before_it_reads_there(
    fresh_postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Citus hands a partition over, what a transaction writes after a mere read is lost."""
    monkeypatch.setattr(citus, "INSTALLED", "SELECT 1")
    outbox = Outbox()
    outbox.append("chat", ConversationStarted(owner_id="ann"), ConversationActivated(), Message.user("hello"))
    async with ConversationStore.open(fresh_postgresql_url, migrate=True, partitions=16) as store:
        await store.partitions()
        with statements_of(store) as statements:
            await outbox.deliver(store)
    held = set[int]()
    for text, parameters in statements:
        if text.startswith("UPDATE letopis_log_heads") and "position < " in text.replace('"', ""):
            held.add(parameters[-1] if isinstance(parameters, tuple) else parameters["held"])
        elif text.endswith("FOR UPDATE"):
            assert held, text
            assert {partition_of("chat", 16)} <= held, text
            assert "letopis_owners" not in text or partition_of("ann", 16) in held

    assert held == {partition_of("chat", 16), partition_of("ann", 16)}


def test_an_equality_with_another_table_binds_no_partition() -> None:
    text = "SELECT * FROM letopis_lanes JOIN letopis_events ON letopis_events.partition = letopis_lanes.partition WHERE"
    statement = Statement(f"{text} letopis_lanes.partition = $1::INTEGER", ())

    assert faults_of(statement) == []
    assert faults_of(statement, bound=True) == ["names no partition of letopis_events"]
    assert faults_of(
        Statement("UPDATE letopis_lanes AS t SET x = 1 FROM v WHERE t.partition = v.partition", ()), bound=True
    )


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
