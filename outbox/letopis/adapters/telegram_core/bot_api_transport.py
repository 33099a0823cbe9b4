"""Send the parts of an answer through a library whose calls are named as in the Bot API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.splitting import Entity


@dataclass(slots=True, kw_only=True)
class BotApiTransport(ABC):
    """Sends to one chat; implements smart send's ``Transport``. Subclasses create the library's own values.

    :ivar bot: the library's bot.
    :ivar place: the parameters of the destination: chat, topic, business connection.
    :ivar options: further parameters of every part, for example ``disable_notification``.
    """

    bot: Any
    place: Mapping[str, Any]
    reply_markup: Any = None
    reply_to: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    async def send_text(self, text: str, entities: Sequence[Entity], *, last: bool) -> int:
        """Send a message."""
        sent = await self.bot.send_message(
            text=text,
            entities=self._entities(entities),
            reply_markup=self.reply_markup if last else None,
            **self._common(),
        )
        return int(sent.message_id)

    async def send_file(self, path: Path, name: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a document."""
        sent = await self.bot.send_document(
            document=await self._document(path, name),
            caption=caption,
            caption_entities=self._entities(entities),
            reply_markup=self.reply_markup,
            **{name: value for name, value in self._common().items() if name != "link_preview_options"},
        )
        return int(sent.message_id)

    async def send_media(self, kind: str, reference: str, caption: str, entities: Sequence[Entity]) -> int:
        """Send a file by its id or URL."""
        given = {kind: reference, "caption": caption, **self._common()}
        left_out = () if caption else ("caption", "parse_mode")
        send = getattr(self.bot, f"send_{kind}")
        sent = await send(**{name: value for name, value in given.items() if name not in left_out})
        return int(sent.message_id)

    @abstractmethod
    def failure_of(self, error: Exception) -> Failure | None:
        """Return what an exception means."""

    @abstractmethod
    async def _document(self, path: Path, name: str) -> Any:
        """Return a file to send."""

    @abstractmethod
    def _entity(self, entity: Entity) -> Any:
        """Return an entity."""

    @abstractmethod
    def _reply(self, message_id: int) -> Any:
        """Return the parameters to quote a message; if it has been deleted meanwhile, the answer is still sent."""

    def _entities(self, entities: Sequence[Entity]) -> list[Any] | None:
        return [self._entity(one) for one in entities] or None

    def _common(self) -> dict[str, Any]:
        common = {"parse_mode": None, **self.place, **self.options}
        if self.reply_to is not None:
            common["reply_parameters"] = self._reply(self.reply_to)
        return common
