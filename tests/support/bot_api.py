"""A Bot API server on loopback: hands out updates, takes calls as Telegram does, and fails when it is told to."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final
from urllib.parse import parse_qsl

from letopis.testing import FakePlatform
from tests.support.webhook import Quiet, listening

TOKEN: Final = "7000:fake-secret-of-a-bot"
BOT_ID: Final = 7000
BOT: Final = {"id": BOT_ID, "is_bot": True, "first_name": "Bot", "username": "fake_bot"}
USER: Final = {"id": 1001, "is_bot": False, "first_name": "Ada", "username": "ada", "language_code": "ru"}
_MAX_TEXT: Final = 4096
_MAX_CAPTION: Final = 1024
_MAX_DATA: Final = 64


class BotApi(FakePlatform):
    """What the server knows. Made by :func:`bot_api`; safe in all threads."""

    def __init__(self, first_id: int = 1) -> None:
        super().__init__(first_id)
        self.url = ""
        self.updates: list[dict[str, Any]] = []
        self.confirmed = 0
        self._update_ids = itertools.count(first_id)
        self._closing = False

    # What users do.

    def push(self, **content: Any) -> dict[str, Any]:
        """Hand out an update, such as ``push(message={...})``; return it."""
        with self._changed:
            update = {"update_id": content.pop("update_id", None) or next(self._update_ids), **content}
            self.updates.append(update)
            self._changed.notify_all()
        return update

    def message(self, text: str | None = None, *, chat: int = 1001, **more: Any) -> dict[str, Any]:
        """Return a raw message of a user; a text that begins with a slash is a command."""
        kind = "private" if chat > 0 else "supergroup"
        made: dict[str, Any] = {
            "message_id": next(self._message_ids),
            "date": int(time.time()),
            "chat": {"id": chat, "type": kind, "first_name": "Ada"},
            "from": USER,
        }
        if text is not None:
            made["text"] = text
            if text.startswith("/"):
                made["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text.split()[0])}]
        return {**made, **more}

    def say(self, text: str, **more: Any) -> dict[str, Any]:
        return self.push(message=self.message(text, **more))

    def press(self, data: str, message: Mapping[str, Any], **user: Any) -> dict[str, Any]:
        sender = {**USER, **user}
        return self.push(
            callback_query={"id": "1", "from": sender, "chat_instance": "1", "message": message, "data": data}
        )

    def repeat(self, update: Mapping[str, Any]) -> None:
        """Hand out an update again, as after a confirmation that was lost."""
        with self._changed:
            self.confirmed = min(self.confirmed, update["update_id"] - 1)
            if update not in self.updates:
                self.updates.append(dict(update))
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until a condition is true. Not in an event loop: use ``asyncio.to_thread``."""
        deadline = time.monotonic() + seconds
        while not condition():
            with self._changed:
                self._changed.wait(0.05)
            assert time.monotonic() < deadline, f"waited {seconds:g} s in vain; the last calls: {self.calls[-5:]}"

    # The server's side.

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _refusal(self, payload: Mapping[str, Any]) -> str | None:
        return _refusal(payload)

    def _carry_out(self, method: str, payload: dict[str, Any]) -> Any:
        match method:
            case "getMe":
                return {**BOT, "can_join_groups": True, "can_read_all_group_messages": False}
            case "getUpdates":
                return self._get_updates(payload)
            case "copyMessage":
                return {"message_id": next(self._message_ids)}
            case "sendMediaGroup":
                return [self._made(payload, one) for one in payload["media"]]
            case "editMessageText" | "editMessageCaption":
                return {**self._made(payload, payload), "message_id": int(payload["message_id"])}
            case "getWebhookInfo":
                return {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
        if method.startswith("send") and method not in ("sendChatAction", "sendMessageDraft"):
            return self._made(payload, payload)
        return True

    def _get_updates(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + float(payload.get("timeout") or 0)
        with self._changed:
            if (offset := int(payload.get("offset") or 0)) > 0:
                self.confirmed = max(self.confirmed, offset - 1)
            while True:
                found = [one for one in self.updates if one["update_id"] > self.confirmed]
                left = deadline - time.monotonic()
                if found or left <= 0 or self._closing:
                    return found[:100]
                self._changed.wait(min(left, 0.5))

    def _made(self, payload: dict[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
        chat = payload["chat_id"]
        number = int(chat) if re.fullmatch(r"-?\d+", str(chat)) else -1_000_000_000_777
        made: dict[str, Any] = {
            "message_id": next(self._message_ids),
            "date": int(time.time()),
            "chat": {"id": number, "type": "private" if number > 0 else "supergroup"},
            "from": BOT,
        }
        made |= {
            name: content[name] for name in ("text", "caption", "entities", "business_connection_id") if name in content
        }
        if "message_thread_id" in payload:
            made |= {"message_thread_id": int(payload["message_thread_id"]), "is_topic_message": True}
        for kind in ("document", "photo", "audio", "voice", "video"):
            if kind in content:
                file = {"file_id": f"file-{made['message_id']}", "file_unique_id": str(made["message_id"])}
                made[kind] = [{**file, "width": 1, "height": 1}] if kind == "photo" else file
        return made


@contextmanager
def bot_api(first_id: int = 1) -> Iterator[BotApi]:
    api = BotApi(first_id)

    class Handler(_Handler):
        known = api

    with listening(Handler) as address:
        api.url = f"http://{address}"
        try:
            yield api
        finally:
            api.close()


class _Handler(Quiet):
    protocol_version = "HTTP/1.1"
    known: BotApi

    def do_POST(self) -> None:  # noqa: N802 - as the base calls it
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        body = self._chunks() if chunked else self.body()
        method = self.path.rsplit("/", 1)[-1]
        if not self.path.startswith(f"/bot{TOKEN}/"):
            self._answer(401, {"ok": False, "error_code": 401, "description": "Unauthorized"})
            return
        status, answer = self.known.take(method, _payload(self.headers.get("Content-Type", ""), body))
        if status == 0:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self._answer(status, answer)

    do_GET = do_POST  # noqa: N815 - as the base calls it

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, status: int, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the bot was killed meanwhile
            self.close_connection = True


def _payload(content_type: str, body: bytes) -> dict[str, Any]:
    if "json" in content_type:
        return dict(json.loads(body or b"{}"))
    if "multipart" in content_type:
        parsed = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        fields: dict[str, Any] = {}
        for part in parsed.iter_parts():  # type: ignore[attr-defined]
            name = part.get_param("name", header="content-disposition")
            raw = part.get_payload(decode=True) or b""
            fields[name] = {"file": part.get_filename(), "bytes": raw} if part.get_filename() else _value(raw.decode())
        for name in ("document", "photo", "audio", "voice", "video"):
            given = fields.get(name)
            if isinstance(given, str) and given.startswith("attach://"):
                fields[name] = fields.pop(given.removeprefix("attach://"), given)
        return fields
    return {name: _value(value) for name, value in parse_qsl(body.decode(), keep_blank_values=True)}


def _value(given: str) -> Any:
    with suppress(ValueError):
        return json.loads(given) if given.startswith(("[", "{")) else given
    return given


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _refusal(payload: Mapping[str, Any]) -> str | None:
    if "text" in payload and not str(payload["text"]).strip():
        return "message text is empty"
    if _units(str(payload.get("text", ""))) > _MAX_TEXT:
        return "message is too long"
    if _units(str(payload.get("caption", ""))) > _MAX_CAPTION:
        return "message caption is too long"
    words = str(payload.get("text") or payload.get("caption") or "")
    for one in [*payload.get("entities", []), *payload.get("caption_entities", [])]:
        if one["offset"] < 0 or one["length"] <= 0 or one["offset"] + one["length"] > _units(words):
            return "can't parse entities: ENTITY_BOUNDS_INVALID"
    markup = payload.get("reply_markup")
    for row in markup.get("inline_keyboard", []) if isinstance(markup, dict) else []:
        for button in row:
            if not 1 <= len(button.get("callback_data", "-").encode()) <= _MAX_DATA:
                return "BUTTON_DATA_INVALID"
    return None


async def until(api: BotApi, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait, without blocking the loop, until a condition on a server is true."""
    await asyncio.to_thread(api.wait, condition, seconds)
