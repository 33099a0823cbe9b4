"""Run SQLAlchemy's statements over a synchronous connection of the driver, each compiled once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from letopis.store.database.schema import Uuid16
from letopis.store.model.identifiers import uuid_of

DIALECT: Final = sqlite.dialect(paramstyle="named")
_NO_VALUES: Final[Mapping[str, Any]] = {}


class Rows(IteratorResult[Any]):
    """The rows of a statement, and how many it wrote."""

    rowcount: int


def rows_of(cursor: sqlite3.Cursor, converters: Sequence[tuple[int, Callable[[bytes], Any]]] = ()) -> Rows:
    """Return all rows of a cursor, with ids as UUIDs."""
    if cursor.description is None:
        result = Rows(SimpleResultMetaData(()), iter(()))
    else:
        rows = cursor.fetchall()
        if converters:
            rows = [list(row) for row in rows]
            for index, convert in converters:
                for row in rows:
                    if (raw := row[index]) is not None:
                        row[index] = convert(raw)
        result = Rows(SimpleResultMetaData([column[0] for column in cursor.description]), iter(rows))
    result.rowcount = cursor.rowcount
    return result


class Statement:
    """A statement, compiled for the driver; ``keys`` are the columns of an INSERT whose values are parameters."""

    def __init__(self, statement: sa.Executable, keys: tuple[str, ...] | None = None) -> None:
        self._compiled: Any = statement.compile(dialect=DIALECT, column_keys=keys)  # type: ignore[attr-defined]
        self.text = str(self._compiled)
        self.defaults = {name: _raw(value) for name, value in self._compiled.params.items()}
        self._expands = any(bind.expanding for bind in self._compiled.binds.values())
        self.converters: list[tuple[int, Callable[[bytes], Any]]] = [
            (index, _origin if column.name.endswith("origin_id") else uuid_of)
            for index, column in enumerate(getattr(statement, "selected_columns", ()))
            if isinstance(column.type, Uuid16)
        ]

    def bound(self, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Return the text and the parameters of the statement with some values."""
        if not self._expands:
            raw = {name: value if type(value) in (str, int) else _raw(value) for name, value in values.items()}
            return self.text, {**self.defaults, **raw}
        state = self._compiled.construct_expanded_state(dict(values))
        return state.statement, {name: _raw(value) for name, value in state.parameters.items()}


_compiled = lru_cache(maxsize=500)(Statement)
_origin = lru_cache(maxsize=500)(uuid_of)
"""Outboxes are few, so the id of each is converted once."""


def compiled(statement: sa.Executable, values: Mapping[str, Any] = _NO_VALUES) -> Statement:
    """Return a statement in its compiled form."""
    if isinstance(statement, sa.Insert):
        return _compiled(statement, tuple(values))
    return _compiled(statement)


def _raw(value: Any) -> Any:
    """Return a value as the driver takes it."""
    if isinstance(value, UUID):
        return value.bytes
    return orjson.dumps(value).decode() if isinstance(value, list) else value
