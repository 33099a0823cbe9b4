"""Stand in for Telegram: show what the adapter's core sends, or refuse it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from letopis.adapters.telegram_core.calls import Failure
from letopis.adapters.telegram_core.incoming import Recorded
from letopis.adapters.telegram_core.keys import ChatKey
from letopis.adapters.telegram_core.outgoing import current_update
from letopis.adapters.telegram_core.splitting import Entity

PLACE: Final = ChatKey(bot_id=7000, chat_id=1001)


@contextmanager
def handling(asked: Recorded) -> Iterator[None]:
    token = current_update.set(asked)
    try:
        yield
    finally:
        current_update.reset(token)


class Refused(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass
class Telegram:
    """Takes the parts of an answer, and fails as it is told: ``fails[0]`` is what happens to the next call."""

    fails: list[Failure | None] = field(default_factory=list)
    shown: list[tuple[str, ...]] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    entities: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    place: ChatKey | None = None

    def to(self, place: ChatKey, options: dict[str, Any]) -> Telegram:
        self.place, self.options = place, options
        return self

    async def send_text(self, text: str, entities: Sequence[Entity], *, last: bool) -> int:
        number = self._show(entities, "text", text)
        self.last.append(last)
        return number

    async def send_file(self, path: Path, name: str, caption: str, entities: Sequence[Entity]) -> int:
        number = self._show(entities, "document", path.read_text(encoding="utf-8"))
        self.captions.append(caption)
        return number

    async def send_media(self, kind: str, reference: str, caption: str, entities: Sequence[Entity]) -> int:
        return self._show(entities, kind, reference, caption)

    def failure_of(self, error: Exception) -> Failure | None:
        return error.failure if isinstance(error, Refused) else None

    def _show(self, entities: Sequence[Entity], *what: str) -> int:
        if self.fails and (failure := self.fails.pop(0)) is not None:
            raise Refused(failure)
        self.shown.append(what)
        self.entities += len(entities)
        return 500 + len(self.shown)
