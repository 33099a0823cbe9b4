"""Do what a program's acts say, through the public interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from letopis import ContentRetention, History, Message
from letopis.outbox import Relay
from letopis.outbox.history.reply import Reply
from letopis.store import CustomEvent
from tests.proof.erasure.book import Act
from tests.support.relays import until

COMMON: Final = "harbour"  # a word of every message, by which all are searched for
LARGE: Final = " and so on" * 80
SEVERAL: Final = 99  # turns: more than there are


@dataclass
class Hand:
    """A bot on one outbox, and the replies that it is writing."""

    history: History
    replies: dict[str, tuple[Any, Reply]] = field(default_factory=dict)

    async def do(self, act: Act) -> UUID | None:
        """Do an act; return the id of the last event that it appended."""
        work: Callable[[Act], Awaitable[Any]] = getattr(self, f"_{act.verb}")
        done = await work(act)
        ids = getattr(done, "event_ids", ())
        return ids[-1] if ids else getattr(done, "revision", None) or getattr(done, "event_id", None)

    def _text(self, act: Act) -> str:
        return f"{COMMON} {act.words[0].text}{LARGE if act.how == 'large' else ''}"

    def _chat(self, act: Act) -> Any:
        return self.history.chat(act.chat.name)

    async def _say(self, act: Act) -> Any:
        word = act.words[0].text
        metadata, role = {"about": word}, act.subject or "user"
        message = Message(role=role, content=self._text(act), id=act.message, author=act.author, metadata=metadata)  # type: ignore[arg-type]
        return await self.history.append(act.chat.name, message, owner=act.owner, metadata=metadata)

    async def _edit(self, act: Act) -> Any:
        return await self._chat(act).edit(act.message, self._text(act))

    async def _sent(self, act: Act) -> Any:
        return await self._chat(act).sent(act.message, platform_ids={"chat": 1}, file_path=act.words[0].text)

    async def _react(self, act: Act) -> Any:
        return await self._chat(act).react(act.message, "rating", actor=act.box.name, value=act.words[0].text)

    async def _custom(self, act: Act) -> Any:
        return await self.history.append(act.chat.name, CustomEvent(name="note", data={"about": act.words[0].text}))

    async def _title(self, act: Act) -> Any:
        return await self._chat(act).rename(act.words[0].text)

    async def _note(self, act: Act) -> Any:
        return await self._chat(act).annotate({f"note-{act.index}": act.words[0].text})

    async def _tag(self, act: Act) -> Any:
        return await self._chat(act).tag(act.words[0].text, *(["pinned"] if act.how == "pinned" else []))

    async def _reply(self, act: Act) -> Any:
        async with self.history.reply(act.chat.name, owner=act.owner, message_id=act.message, every=0) as reply:
            await reply.add(self._text(act))
            return await reply.finish()

    async def _begin(self, act: Act) -> Any:
        """Begin a reply, and keep what there is of it."""
        block = self.history.reply(act.chat.name, owner=act.owner, message_id=act.message, every=0)
        reply = await block.__aenter__()
        self.replies[act.message] = block, reply
        await reply.add(self._text(act))
        await until(lambda: reply.kept > 0)
        return reply

    async def _end(self, act: Act) -> Any:
        """Add to a reply, and finish it."""
        block, reply = self.replies.pop(act.message)
        try:
            await reply.add(f" {act.words[0].text}")
            await asyncio.sleep(0.005)
            return await reply.finish()
        finally:
            await block.__aexit__(None, None, None)

    async def _record(self, act: Act) -> Any:
        word = act.words[0]
        key = f"{act.box.name}-{act.amount}"
        return await self._records(act, word.scope).put(
            ("notes",), key, {"about": word.text}, tags={"about": word.text}
        )

    def _records(self, act: Act, scope: str) -> Any:
        return self.history.records(**{"conversation" if scope == act.chat.name else "owner": scope})  # type: ignore[arg-type]

    async def _fork(self, act: Act) -> Any:
        parent = self.history.chat(act.chat.parent.name)  # type: ignore[union-attr]
        title = act.words[0].text
        return await parent.fork(act.chat.name, at=act.amount or None, owner=act.owner, title=title)

    async def _rewind(self, act: Act) -> Any:
        return await self._chat(act).rewind(to=act.message)

    async def _clear(self, act: Act) -> Any:
        return await self._chat(act).rewind(to=None)

    async def _undo(self, act: Act) -> Any:
        return await self._chat(act).undo(SEVERAL)

    async def _pop(self, act: Act) -> Any:
        for _ in range(act.amount):
            await self._chat(act).pop()

    async def _redact(self, act: Act) -> Any:
        return await self._chat(act).redact(act.message, reason="asked")

    async def _reset(self, act: Act) -> Any:
        return await self._chat(act).reset(reason="asked")

    async def _delete(self, act: Act) -> Any:
        return await self._chat(act).delete(reason="asked")

    async def _everywhere(self, act: Act) -> Any:
        return await self._chat(act).reset(reason="asked", everywhere=True)

    async def _owner(self, act: Act) -> Any:
        await self.history.erase(owner=act.subject, how=act.how, reason="asked")  # type: ignore[arg-type]

    async def _person(self, act: Act) -> Any:
        await self.history.erase(person=act.subject, how=act.how, reason="asked")  # type: ignore[arg-type]

    async def _clear_records(self, act: Act) -> Any:
        return await self._records(act, act.subject).erase()

    async def _hold(self, act: Act) -> Any:
        await self.history.store.erasures.hold(act.how, act.subject, reason="a court asked")  # type: ignore[arg-type]

    async def _release(self, act: Act) -> Any:
        await self.history.store.erasures.release(act.how, act.subject)  # type: ignore[arg-type]

    async def _drain(self, act: Act) -> Any:
        await Relay(self.history.outbox, self.history.store).drain()
        while await self.history.store.catch_up_search():
            pass

    async def _trim(self, act: Act) -> Any:
        policy = ContentRetention(max_messages=act.amount)
        await Relay(self.history.outbox, self.history.store, retention=policy).drain()
