"""What refused an event is named by the schema's own words, and no value ever is."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import create_async_engine

from letopis.store.database.fault_classification import name_of_mariadb, name_of_postgresql, name_of_sqlite, translated
from letopis.store.database.faults import StoreFault
from letopis.store.database.urls import normalise_url

SECRET = "secret_42"

MARIADB = [
    (1062, f"Duplicate entry 'x' for key '{SECRET}' for key 'uq_a'", "constraint uq_a"),
    (1062, f"Duplicate entry '{SECRET}\n' for key 'uq_a'", "constraint uq_a"),
    (1264, "Out of range value for column 'n' at row 12", "column n"),
    (1366, f"Incorrect string value: '{SECRET}' for column `db`.`t`.`data` at row 1", "column t.data"),
    (
        1452,
        "Cannot add or update a child row: a foreign key constraint fails (`d`.`t`, CONSTRAINT `fk_t` FOREIGN KEY x)",
        "constraint t.fk_t",
    ),
    (4025, "CONSTRAINT `approved_first` failed for `db`.`letopis_events`", "constraint letopis_events.approved_first"),
    (4025, "CONSTRAINT `t.data` failed for `db`.`t`", "constraint t.data"),
    (1644, f"Column '{SECRET}' cannot be null", ""),  # a trigger's own words
    (1048, f"Column '{SECRET} or so' cannot be null", ""),
    (1048, "Le champ 'audit' ne peut être vide", ""),
]
SQLITE = [
    ("SQLITE_CONSTRAINT_CHECK", f"CHECK constraint failed: data <> '{SECRET}'", ""),
    ("SQLITE_CONSTRAINT_PRIMARYKEY", "UNIQUE constraint failed: t.a, t.b", "column t.a"),
    ("SQLITE_CONSTRAINT_TRIGGER", f"CHECK constraint failed: {SECRET}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("number", "message", "expected"), MARIADB)
def test_what_mariadb_names(number: int, message: str, expected: str) -> None:
    assert name_of_mariadb(number, message) == expected


@pytest.mark.parametrize(("code", "message", "expected"), SQLITE)
def test_what_sqlite_names(code: str, message: str, expected: str) -> None:
    assert name_of_sqlite(code, message) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"column_name": "audit"}, "column audit"),
        ({"constraint_name": f"not an identifier, {SECRET}", "table_name": "t"}, ""),
        ({"message": f"invalid input syntax: {SECRET}"}, ""),
        ({"constraint_name": None, "message": None}, ""),
        ({}, ""),
    ],
)
def test_what_postgresql_names(fields: dict[str, Any], expected: str) -> None:
    assert name_of_postgresql(SimpleNamespace(**fields)) == expected  # type: ignore[arg-type]


@given(value=st.text(max_size=60))
def test_a_value_in_the_text_is_never_taken_for_a_name(value: str) -> None:
    """Whatever the values are, what is named is what the template ends with."""
    assert name_of_mariadb(1062, f"Duplicate entry '{value}' for key 'uq_a'") == "constraint uq_a"
    assert name_of_mariadb(1366, f"Incorrect integer value: '{value}' for column `d`.`t`.`c` at row 1") == "column t.c"


@pytest.mark.parametrize(
    ("kind", "table", "insert", "expected"),
    [
        ("postgresql", "a int CONSTRAINT small CHECK (a < 5)", "42", "constraint named.small"),
        ("postgresql", "a varchar(3)", "'secret_42'", "type character varying(3)"),
        ("mariadb", "a int, CONSTRAINT small CHECK (a < 5)", "42", "constraint named.small"),
        ("mariadb", "a varchar(3)", "'secret_42'", "column a"),
        ("mariadb", "a int", "'secret_42'", "column named.a"),
        ("sqlite", "a int CONSTRAINT small CHECK (a < 5)", "42", "constraint small"),
        ("sqlite", "a int NOT NULL", "NULL", "column named.a"),
    ],
)
async def test_what_a_real_database_names(
    new_store_url: Callable[[str], str], kind: str, table: str, insert: str, expected: str
) -> None:
    engine = create_async_engine(normalise_url(new_store_url(kind)))
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"CREATE TABLE named ({table})")

        async def refused() -> None:
            with translated():
                async with engine.begin() as connection:
                    for _ in range(2):
                        await connection.exec_driver_sql(f"INSERT INTO named VALUES ({insert})")

        with pytest.raises(StoreFault) as raised:
            await refused()
    finally:
        await engine.dispose()

    assert f"({expected})" in str(raised.value)
    assert SECRET not in str(raised.value)
