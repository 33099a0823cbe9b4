"""Each column of an outbox file that can hold words belongs to a holder, which erasures reach."""

import re
from collections.abc import Iterable

import sqlalchemy as sa

from letopis.adapters.telegram_core import local_state
from letopis.outbox.event_log import schema as outbox_schema
from letopis.outbox.event_log.erasing import HOLDERS as OUTBOX_HOLDERS

# Ids, names, faults without payload, and what operators write: no content (docs/howto/erase.md, "What stays").
NOT_CONTENT = re.compile(
    r"_id$|^(lane|name|key|kind|state|type|role|author|subject|how|verb|via|actor|holder|host|breaker|writer|recipient"
    r"|digest|salt|device|inode|epoch|media|revision|requested_by|repaired_by|paused_by|reason|fault|fault_class|outcome"
    r"|breaker_reason|breaker_detail|destination|moved_to|boot_id|erasures|erasure|action|language|sent_as|positions"
    r"|updated_by|active_conversation_id|inherited_to|forked_from_event|forked_from_id|activated_by|store_id|origin_id)$"
)
TEXTUAL = (sa.String, sa.Text, sa.LargeBinary, sa.JSON, sa.types.TypeDecorator)


def may_hold_words(table: sa.Table) -> set[str]:
    """Return the columns of a table that can hold content, as ``table.column``."""
    return {
        f"{table.name}.{column.name}"
        for column in table.c
        if isinstance(column.type, TEXTUAL) and not NOT_CONTENT.search(column.name)
    }


def held(holders: Iterable[object]) -> set[str]:
    return {
        f"{table}.{column}" for holder in holders for table, columns in holder.columns.items() for column in columns
    }  # type: ignore[attr-defined]


def test_each_column_of_an_outbox_that_can_hold_words_has_a_holder() -> None:
    wanted = set[str]().union(*map(may_hold_words, outbox_schema.metadata.tables.values()))

    assert wanted - held(OUTBOX_HOLDERS) == set()


def test_tables_of_adapters_in_an_outbox_have_a_holder() -> None:
    created = [sql for sql in local_state._TABLES if sql.startswith("CREATE TABLE")]
    wanted = {re.findall(r"EXISTS (\w+)", sql)[0] for sql in created if re.search(r"\bdata\b|\btext\b", sql, re.ASCII)}

    assert wanted <= {table for holder in OUTBOX_HOLDERS for table in holder.columns}


def test_a_forgotten_column_is_noticed() -> None:
    table = sa.Table("letopis_outbox_notes", sa.MetaData(), sa.Column("note_id", sa.Text), sa.Column("words", sa.Text))

    assert may_hold_words(table) - held(OUTBOX_HOLDERS) == {"letopis_outbox_notes.words"}
