"""Clients of Kurigram without a network: the library's own dispatcher and methods, and a server of ours behind them."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from pyrogram import Client, raw, types

from tests.support.bot_api import BOT_ID

ADA: Final = 1001


class Offline(Client):
    def __init__(self) -> None:
        super().__init__("test", api_id=1, api_hash="x", in_memory=True, no_updates=False, workers=1)
        self.calls: list[Any] = []
        self.troubles: list[BaseException] = []
        self._numbers = itertools.count(501)
        self.me = types.User(id=BOT_ID, is_bot=True, first_name="Bot")

    async def resolve_peer(self, peer_id: Any) -> Any:
        return raw.types.InputPeerUser(user_id=peer_id, access_hash=0)

    async def invoke(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(query)
        if self.troubles:
            raise self.troubles.pop(0)
        if isinstance(query, raw.functions.messages.DeleteMessages):
            return raw.types.messages.AffectedMessages(pts=1, pts_count=1)
        if isinstance(query, raw.functions.messages.EditMessage):
            return self._updates(raw.types.UpdateEditMessage, query.id, query.message)
        if isinstance(query, raw.functions.messages.SendMessage | raw.functions.messages.SendMedia):
            return self._updates(raw.types.UpdateNewMessage, next(self._numbers), query.message)
        raise AssertionError(f"nobody has thought of {type(query).__name__}")

    async def save_file(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        return raw.types.InputFile(id=1, parts=1, name=Path(str(path)).name, md5_checksum="")

    def _updates(self, kind: Any, number: int, text: str) -> Any:
        return raw.types.Updates(
            updates=[kind(message=self.message(number, text, out=True), pts=1, pts_count=1)],
            users=[_user(ADA), _user(BOT_ID, bot=True)],
            chats=[],
            date=0,
            seq=0,
        )

    def message(self, number: int, text: str, *, out: bool = False, edited: int | None = None) -> Any:
        return raw.types.Message(
            id=number,
            peer_id=raw.types.PeerUser(user_id=ADA),
            from_id=raw.types.PeerUser(user_id=BOT_ID if out else ADA),
            date=int(time.time()),
            message=text,
            out=out,
            edit_date=edited,
            entities=[],
            restriction_reason=[],
        )

    def receive(self, update: Any) -> None:
        users = {ADA: _user(ADA), BOT_ID: _user(BOT_ID, bot=True)}
        self.dispatcher.updates_queue.put_nowait((update, users, {}))

    def say(self, number: int, text: str) -> None:
        self.receive(raw.types.UpdateNewMessage(message=self.message(number, text), pts=1, pts_count=1))


def _user(number: int, **fields: Any) -> Any:
    return raw.types.User(
        id=number, first_name="Ada", access_hash=0, lang_code="ru", restriction_reason=[], usernames=[], **fields
    )


@asynccontextmanager
async def dispatching(client: Offline) -> AsyncIterator[None]:
    client.loop = asyncio.get_running_loop()
    client.skip_updates = True
    await client.dispatcher.start()
    try:
        yield
    finally:
        await client.dispatcher.stop()
