"""Ask what a hold forbids to erase: whoever is about to record an erasure or to carry one out asks here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import conversations, holds, messages, of_conversation
from letopis.store.errors import Held

Subject = tuple[str, str | None]
"""What may be held: ``owner`` or ``conversation``, and its id."""


def held() -> sa.ColumnElement[bool]:
    """Return the condition that a hold forbids to erase anything of a row of the conversations."""
    c, kind, subject = conversations.c, holds.c.kind, holds.c.subject
    of_conversation = sa.and_(kind == "conversation", subject == c.conversation_id)
    return sa.exists().where(sa.or_(of_conversation, sa.and_(kind == "owner", subject == c.owner_id)))


async def refuse_held(
    connection: AsyncConnection, *, owner: str | None = None, conversation: str | None = None, author: str | None = None
) -> None:
    """Raise :exc:`Held` if a hold forbids to erase an owner, a conversation, or what an author wrote anywhere.

    An owner is held by a hold on any conversation of theirs, and a conversation by one on its owner.
    """
    c = conversations.c
    subjects = [("owner", owner), ("owner", author), ("conversation", conversation)]
    named = [sa.and_(holds.c.kind == kind, holds.c.subject == name) for kind, name in subjects if name is not None]
    for kind, column, condition in (
        ("conversation", c.conversation_id, None if owner is None else c.owner_id == owner),
        ("owner", c.owner_id, None if conversation is None else c.conversation_id == conversation),
    ):
        if condition is not None:
            named.append(sa.and_(holds.c.kind == kind, holds.c.subject.in_(sa.select(column).where(condition))))
    if named and (row := (await connection.execute(sa.select(holds).where(sa.or_(*named)).limit(1))).first()):
        raise Held(kind=row.kind, subject=row.subject, reason=row.reason)


async def all_held(connection: AsyncConnection) -> frozenset[Subject]:
    """Return all that is held."""
    return frozenset((row.kind, row.subject) for row in await connection.execute(sa.select(holds)))


def owners_of(subjects: Collection[Subject]) -> list[str]:
    """Return the owners among some subjects: what they wrote is held wherever it is."""
    return sorted(subject for kind, subject in subjects if kind == "owner" and subject is not None)


def written_by(dialect: Dialect, *columns: Any) -> sa.Select[*tuple[Any, ...]]:
    """Return the select of columns of the messages of a conversation that ``:authors`` wrote, and that have content."""
    has_content = messages.c.redacted_at.is_(None)
    return sa.select(*columns).where(
        *of_conversation(messages), dialect.among(messages.c.author, "authors"), has_content
    )
