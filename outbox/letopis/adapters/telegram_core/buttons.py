"""Describe screens of the menu: a text, its buttons, and what a press of one means; pure."""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Final, Literal

from letopis.adapters.telegram_core.keys import ChatKey

PREFIX: Final = "lt"
"""The prefix of the data of every button of the menu."""
DATA_LIMIT: Final = 64
"""The most bytes that a button's data may have."""
Action = Literal["new", "list", "chat", "switch", "rename", "delete", "erase", "history", "stats"]
ACTIONS: Final[tuple[Action, ...]] = (
    "new",
    "list",
    "chat",
    "switch",
    "rename",
    "delete",
    "erase",
    "history",
    "stats",
)


@dataclass(frozen=True, slots=True)
class Button:
    """A button below a message.

    :ivar data: the data sent back when the button is pressed, at most 64 bytes.
    """

    text: str
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MenuScreen:
    """What the menu shows.

    :ivar rows: rows of buttons, from the top.
    :ivar asks: the conversation that the answer will give a title; the message then asks for a reply.
    :ivar hint: with ``asks``: shown in the input field.
    :ivar document: a text that is sent as a file of this name and content, because it is too long for a message.
    :ivar notice: shown briefly above the chat after a button is pressed.
    """

    text: str
    rows: tuple[tuple[Button, ...], ...] = field(default=())
    asks: str | None = None
    hint: str | None = None
    document: tuple[str, str] | None = None
    notice: str | None = None

    def keyboard(self) -> list[list[dict[str, str]]]:
        """Return the buttons in the Bot API's form, for ``inline_keyboard``."""
        return [[{"text": one.text, "callback_data": one.data} for one in row] for row in self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """A press of a button.

    :ivar argument: the short name of a conversation, or the number of a page.
    """

    action: Action
    argument: str = ""


def button(text: str, action: Action, argument: str = "") -> Button:
    """Return a button of the menu.

    :raises ValueError: its data would exceed 64 bytes.
    """
    data = f"{PREFIX}:{action}:{argument}"
    if len(data.encode()) > DATA_LIMIT:
        raise ValueError(f"the data of a button has {len(data.encode())} bytes, the limit is {DATA_LIMIT}")
    return Button(text, data)


def read_press(data: str | None) -> Press | None:
    """Return what a button's data means; ``None`` if the button is not of the menu."""
    prefix, _, rest = (data or "").partition(":")
    action, _, argument = rest.partition(":")
    if prefix != PREFIX:
        return None
    return next((Press(action=one, argument=argument) for one in ACTIONS if one == action), None)


def short_name(key: ChatKey, conversation_id: str) -> str:
    """Return the short name of a place's conversation in a button's data, at most 40 bytes.

    For ids made by this adapter, it is the part after the place's own id; for others, a digest.
    """
    if conversation_id == key.owner:
        return "/"
    suffix = conversation_id.removeprefix(f"{key.owner}/")
    if suffix != conversation_id and len(suffix.encode()) <= 32 and ":" not in suffix:
        return f"/{suffix}"
    digest = hashlib.sha256(conversation_id.encode()).digest()[:18]
    return f"#{urlsafe_b64encode(digest).decode()}"


def long_name(key: ChatKey, name: str) -> str | None:
    """Return the conversation id for a short name; ``None`` if it has to be looked up by its digest."""
    if name == "/":
        return key.owner
    return f"{key.owner}{name}" if name.startswith("/") else None


def shortened(title: str, limit: int = 40) -> str:
    """Return a title for a button: on one line, cut at ``limit`` characters."""
    line = " ".join(title.split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def file_name(title: str, ending: str) -> str:
    """Return a file name for a document that every operating system accepts."""
    return (re.sub(r"[^\w .()-]+", "_", title).strip(" .") or "chat")[:100] + ending
