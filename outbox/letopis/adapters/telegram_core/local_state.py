"""Keep in the outbox file what an adapter must know even when nothing else is reachable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox import History, Transaction
from letopis.store.model.events import to_microseconds, utc_now

_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS letopis_telegram_updates (
        bot_id INTEGER NOT NULL, update_id INTEGER NOT NULL, received_at INTEGER NOT NULL, handled_at INTEGER,
        attempts INTEGER NOT NULL, conversation_id TEXT, owner_id TEXT, author TEXT, data TEXT NOT NULL,
        PRIMARY KEY (bot_id, update_id)
    ) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS ix_letopis_telegram_updates_unhandled
        ON letopis_telegram_updates (conversation_id) WHERE handled_at IS NULL""",
    # What is erased is gone from here too, whichever program erases it: the raw update holds the message. An outbox
    # inserts into this view each erasure that it carries out.
    "CREATE VIEW IF NOT EXISTS letopis_erasing AS SELECT NULL AS kind, NULL AS subject, NULL AS held WHERE 0",
    """CREATE TRIGGER IF NOT EXISTS letopis_telegram_erasing INSTEAD OF INSERT ON letopis_erasing BEGIN
            UPDATE letopis_telegram_updates SET data = '', handled_at = received_at
            WHERE handled_at IS NULL AND coalesce(conversation_id, '') NOT IN (SELECT value FROM json_each(NEW.held))
            AND coalesce(owner_id, '') NOT IN (SELECT value FROM json_each(NEW.held))
            AND (NEW.subject = iif(NEW.kind = 'conversation', conversation_id, owner_id)
                OR (NEW.kind = 'person' AND NEW.subject = author));
        END""",
    """CREATE TABLE IF NOT EXISTS letopis_telegram_languages (
        owner_id TEXT NOT NULL PRIMARY KEY, language TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS letopis_telegram_prompts (
        owner_id TEXT NOT NULL, message_id INTEGER NOT NULL, conversation_id TEXT NOT NULL, asked_at INTEGER NOT NULL,
        PRIMARY KEY (owner_id, message_id)
    ) WITHOUT ROWID""",
)
KEEP_HANDLED: Final = timedelta(days=2)
"""How long a handled update is remembered: Telegram may repeat it for a day."""
TRIM_INTERVAL: Final = timedelta(hours=1)
"""How long handled updates may stay after that."""
MAX_ATTEMPTS: Final = 3
"""How often the handling of an update begins again after its process ended meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownUpdate:
    """An update that was recorded before.

    :ivar handled: its handling has finished.
    :ivar conversation_id: the conversation it belongs to, if any.
    """

    handled: bool
    conversation_id: str | None


class LocalState:
    """The tables of the adapters in an outbox file: updates that were received, languages of chats, open prompts.

    They exist in this file only and are not delivered.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._ready = False
        self._trimmed_at = utc_now()
        self._lock = asyncio.Lock()
        self._languages: dict[str, str] = {}

    async def prepare(self) -> None:
        """Create missing tables, and forget updates that were handled long ago."""
        if self._ready:
            return
        async with self._lock:
            async with self._history.transaction() as tx:
                for table in _TABLES:
                    await tx.execute(sa.text(table))
                await self._trim(tx)
            self._ready = True

    async def _trim(self, tx: Transaction) -> None:
        """Forget updates that were handled long ago."""
        self._trimmed_at = utc_now()
        await tx.execute(
            sa.text("DELETE FROM letopis_telegram_updates WHERE handled_at < :until"),
            {"until": to_microseconds(self._trimmed_at - KEEP_HANDLED)},
        )

    # Updates.

    async def receive(
        self,
        tx: Transaction,
        bot_id: int,
        update: Mapping[str, Any],
        conversation_id: str | None,
        *,
        owner: str | None = None,
        author: str | None = None,
    ) -> KnownUpdate | None:
        """Record an update as received. If it was recorded before, change nothing and return what is known of it.

        An erasure of its conversation, owner or author drops its content, and it counts as handled.
        """
        if utc_now() - self._trimmed_at > TRIM_INTERVAL:
            await self._trim(tx)
        key = {"bot": bot_id, "update": update["update_id"]}
        done = await tx.execute(
            sa.text(
                "INSERT INTO letopis_telegram_updates"
                " (bot_id, update_id, received_at, attempts, conversation_id, owner_id, author, data)"
                " VALUES (:bot, :update, :now, 0, :conversation, :owner, :author, :data)"
                " ON CONFLICT (bot_id, update_id) DO NOTHING"
            ),
            {
                **key,
                "now": to_microseconds(utc_now()),
                "conversation": conversation_id,
                "owner": owner,
                "author": author,
                "data": json.dumps(update),
            },
        )
        if done.rowcount == 1:
            return None
        return await self._known(tx, key)

    async def _known(self, tx: Transaction, key: Mapping[str, int]) -> KnownUpdate:
        found = await tx.execute(
            sa.text(
                "SELECT handled_at, conversation_id FROM letopis_telegram_updates"
                " WHERE bot_id = :bot AND update_id = :update"
            ),
            key,
        )
        row = found.one()
        return KnownUpdate(handled=row.handled_at is not None, conversation_id=row.conversation_id)

    async def handled(self, bot_id: int, update_id: int) -> None:
        """Record that the handling of an update has finished, and drop its content."""
        async with self._history.transaction() as tx:
            await tx.execute(
                sa.text(
                    "UPDATE letopis_telegram_updates SET handled_at = :now, data = ''"
                    " WHERE bot_id = :bot AND update_id = :update AND handled_at IS NULL"
                ),
                {"now": to_microseconds(utc_now()), "bot": bot_id, "update": update_id},
            )

    async def begin_again(self, bot_id: int, update_id: int) -> None:
        """Count that the handling of an update begins again; those that wait behind it keep their attempts."""
        async with self._history.transaction() as tx:
            await tx.execute(
                sa.text(
                    "UPDATE letopis_telegram_updates SET attempts = attempts + 1"
                    " WHERE bot_id = :bot AND update_id = :update"
                ),
                {"bot": bot_id, "update": update_id},
            )

    async def unhandled(self, bot_id: int, *, older_than: timedelta = timedelta(0)) -> list[dict[str, Any]]:
        """Return the updates whose handling never finished, oldest first.

        An update whose handling has begun again three times is no longer returned, and its content is dropped.

        :param older_than: only updates received at least this long ago, because other processes may still be handling
            later ones.
        """
        await self.prepare()
        now = utc_now()
        async with self._history.transaction() as tx:
            await tx.execute(
                sa.text(
                    "UPDATE letopis_telegram_updates SET handled_at = :now, data = ''"
                    " WHERE bot_id = :bot AND handled_at IS NULL AND attempts >= :attempts"
                ),
                {"now": to_microseconds(now), "bot": bot_id, "attempts": MAX_ATTEMPTS},
            )
            rows = (
                await tx.execute(
                    sa.text(
                        "SELECT data FROM letopis_telegram_updates WHERE bot_id = :bot AND handled_at IS NULL"
                        " AND received_at <= :until ORDER BY update_id"
                    ),
                    {"bot": bot_id, "until": to_microseconds(now - older_than)},
                )
            ).all()
        return [json.loads(row[0]) for row in rows]

    async def is_unhandled(self, bot_id: int, update_id: int) -> bool:
        """Return True if the handling of an update that was received has not finished."""
        await self.prepare()
        unhandled = "SELECT 1 FROM letopis_telegram_updates WHERE bot_id = :b AND update_id = :u AND handled_at IS NULL"
        async with self._history.transaction() as tx:
            return await tx.scalar(sa.text(unhandled), {"b": bot_id, "u": update_id}) is not None

    # Languages.

    async def learn_language(self, tx: Transaction, owner: str, language: str | None) -> None:
        """Remember the language of a chat; once the transaction has committed, call :meth:`learned_language`."""
        if language is None or self._languages.get(owner) == language:
            return
        await tx.execute(
            sa.text(
                "INSERT INTO letopis_telegram_languages (owner_id, language) VALUES (:owner, :language)"
                " ON CONFLICT (owner_id) DO UPDATE SET language = excluded.language"
            ),
            {"owner": owner, "language": language},
        )

    def learned_language(self, owner: str, language: str | None) -> None:
        """Keep the language of a chat in memory, too."""
        if language is None:
            return
        if len(self._languages) > 10_000:
            self._languages.clear()
        self._languages[owner] = language

    async def language(self, owner: str) -> str | None:
        """Return the last known language of a chat, as Telegram gives it; ``None`` if there is none yet."""
        await self.prepare()
        if owner not in self._languages:
            async with self._history.transaction() as tx:
                found = await tx.scalar(
                    sa.text("SELECT language FROM letopis_telegram_languages WHERE owner_id = :owner"),
                    {"owner": owner},
                )
            if found is None:
                return None
            self._languages[owner] = found
        return self._languages[owner]

    # Prompts.

    async def asked(self, owner: str, message_id: int, conversation_id: str) -> None:
        """Remember that the reply to one of the bot's messages will be the title of a conversation."""
        await self.prepare()
        async with self._history.transaction() as tx:
            await tx.execute(
                sa.text(
                    "INSERT INTO letopis_telegram_prompts (owner_id, message_id, conversation_id, asked_at)"
                    " VALUES (:owner, :message, :conversation, :now)"
                    " ON CONFLICT (owner_id, message_id) DO UPDATE SET conversation_id = excluded.conversation_id"
                ),
                {
                    "owner": owner,
                    "message": message_id,
                    "conversation": conversation_id,
                    "now": to_microseconds(utc_now()),
                },
            )

    async def answered(self, owner: str, message_id: int) -> str | None:
        """Return the conversation whose title a message asked for; ``None`` if it asked for none."""
        await self.prepare()
        async with self._history.transaction() as tx:
            found = await tx.scalar(
                sa.text(
                    "SELECT conversation_id FROM letopis_telegram_prompts"
                    " WHERE owner_id = :owner AND message_id = :message"
                ),
                {"owner": owner, "message": message_id},
            )
        return None if found is None else str(found)
