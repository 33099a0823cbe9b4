"""Stand in for a messaging platform: record what a bot sends, refuse it, or lose the answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the platform has heard.

    :ivar answered: the status that the bot got; 0 if the connection was cut.
    :ivar result: what the call made; ``None`` if it was not carried out.
    """

    method: str
    payload: dict[str, Any]
    answered: int
    result: Any = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to the next call of a method: an error with a status, or with 0 a cut connection."""

    method: str
    status: int
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class SentMessage:
    """What the platform returns for a message that it shows."""

    message_id: int
    chat_id: int | str
    text: str


class SendFailed(Exception):
    """The platform refused a message, or its answer was lost: ``status`` is then 0."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description or "the connection was cut")
        self.status = status


class FakePlatform:
    """A messaging platform in memory, with the names of Telegram's Bot API; safe in all threads.

    :ivar calls: everything that bots have called, in order.
    """

    def __init__(self, first_id: int = 1) -> None:
        self.calls: list[Call] = []
        self.troubles: list[Trouble] = []
        self._changed = threading.Condition()
        self._message_ids = itertools.count(first_id + 100)

    def fail(self, method: str, status: int, description: str = "", **parameters: Any) -> None:
        """Answer the next call of a method with an error, and do not carry it out."""
        self.troubles.append(Trouble(method, status, description, parameters))

    def cut(self, method: str, *, accepted: bool = True) -> None:
        """Cut the connection at the next call of a method, after it was carried out or before.

        A bot that repeats a call that was carried out shows its message twice.
        """
        self.troubles.append(Trouble(method, 0, accepted=accepted))

    async def send_message(self, chat_id: int | str, text: str, **payload: Any) -> SentMessage:
        """Show a message in a chat.

        :raises SendFailed: the platform refused, or the connection was cut.
        """
        status, body = self.take("sendMessage", {"chat_id": chat_id, "text": text, **payload})
        if status != 200:
            raise SendFailed(status, body["description"])
        return SentMessage(body["result"]["message_id"], chat_id, text)

    def sent(self, *methods: str, chat: int | str | None = None) -> list[dict[str, Any]]:
        """Return the messages that bots have sent and the platform has shown, in order."""
        with self._changed:
            return [
                call.result
                for call in self.calls
                if isinstance(call.result, dict)
                and "message_id" in call.result
                and call.method.startswith(methods or ("send",))
                and chat in (None, call.result["chat"]["id"])
            ]

    def texts(self, chat: int | str | None = None) -> list[str]:
        """Return the texts of :meth:`sent`."""
        return [message.get("text") or message.get("caption") or "" for message in self.sent(chat=chat)]

    def take(self, method: str, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Carry out a call; return the status, 0 to cut the connection, and the body."""
        trouble = next((trouble for trouble in self.troubles if trouble.method == method), None)
        if trouble is not None:
            self.troubles.remove(trouble)
            self._note(method, payload, trouble.status, self._carry_out(method, payload) if trouble.accepted else None)
            body = {"ok": False, "error_code": trouble.status, "description": trouble.description}
            return trouble.status, {**body, **({"parameters": trouble.parameters} if trouble.parameters else {})}
        if (refusal := self._refusal(payload)) is not None:
            self._note(method, payload, 400)
            return 400, {"ok": False, "error_code": 400, "description": f"Bad Request: {refusal}"}
        result = self._carry_out(method, payload)
        self._note(method, payload, 200, result)
        return 200, {"ok": True, "result": result}

    def _note(self, method: str, payload: dict[str, Any], answered: int, result: Any = None) -> None:
        with self._changed:
            self.calls.append(Call(method, payload, answered, result))
            self._changed.notify_all()

    def _refusal(self, payload: Mapping[str, Any]) -> str | None:
        """Return why the platform does not take a call, if it does not."""
        return None if str(payload.get("text", "-")).strip() else "message text is empty"

    def _carry_out(self, method: str, payload: dict[str, Any]) -> Any:
        """Return what a call makes: a message if it sends or edits one."""
        if not method.startswith(("send", "edit")) or method == "sendChatAction":
            return True
        number = payload.get("message_id") or next(self._message_ids)
        chat = {"id": payload["chat_id"], "type": "private"}
        content = {name: payload[name] for name in ("text", "caption") if name in payload}
        return {"message_id": number, "date": int(time.time()), "chat": chat, **content}
