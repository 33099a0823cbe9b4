"""Also write a bot's chats as the seed's JSON files, so that the bot can go back to its own code.

The files are a copy: a failed write is logged and never raised to the caller.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, Final

from letopis.adapters.voxpersona.models import short_title

_LOG: Final = logging.getLogger("letopis.adapters.voxpersona")
_INDEX: Final = "index"


class Mirror:
    """The folder of a bot: ``user_{id}/index.json``, and a file for each chat."""

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir
        self._lock = RLock()

    def write_index(self, index: Mapping[str, Any], *, complete: bool) -> None:
        """Write a user's list of chats.

        :param complete: ``False`` to keep the chats of the file that ``index`` lacks.
        """
        user_id = index["user_id"]
        chats = {one["conversation_id"]: accepted(one) for one in index["conversations"]}
        if not complete and (there := self._read(user_id, _INDEX)) is not None:
            chats = {one["conversation_id"]: one for one in there["conversations"]} | chats
        self._write(user_id, _INDEX, {**index, "conversations": list(chats.values())})

    def write_chat(self, metadata: Mapping[str, Any], messages: Iterable[Mapping[str, Any]]) -> None:
        """Write a chat."""
        data = {"schema_version": "1.0", "metadata": accepted(metadata), "messages": list(messages)}
        self._write(metadata["user_id"], metadata["conversation_id"], data)

    def add_message(self, user_id: int, conversation_id: str, values: Mapping[str, Any]) -> bool:
        """Add a message to a chat and make it active. Return False if its file cannot be read."""
        with self._lock:
            return self._add(user_id, conversation_id, values)

    def _add(self, user_id: int, conversation_id: str, values: Mapping[str, Any]) -> bool:
        chat, index = self._read(user_id, conversation_id), self._read(user_id, _INDEX)
        if chat is None or index is None:
            return False
        messages = [*chat["messages"], dict(values)]
        metadata = chat["metadata"] | {
            "updated_at": values["timestamp"],
            "is_active": True,
            "message_count": len(messages),
            "total_tokens": sum(one.get("tokens") or 0 for one in messages),
        }
        self.write_chat(metadata, messages)
        for one in index["conversations"]:
            one["is_active"] = one["conversation_id"] == conversation_id
        index["conversations"] = [
            metadata if one["conversation_id"] == conversation_id else one for one in index["conversations"]
        ]
        self.write_index({**index, "last_active_conversation_id": conversation_id}, complete=True)
        return True

    def remove(self, user_id: int, conversation_id: str) -> None:
        """Remove the file of a chat."""
        self._attempt(lambda: self._path(user_id, conversation_id).unlink(missing_ok=True))

    def _path(self, user_id: int, name: str) -> Path:
        if Path(name).name != name:  # an id may come from a button, so from anyone
            raise ValueError("a chat's id is no name of a file")
        return self._base_dir / f"user_{user_id}" / f"{name}.json"

    def _read(self, user_id: int, name: str) -> dict[str, Any] | None:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(self._path(user_id, name).read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("messages", found.get("conversations")), list):
                return found
        return None

    def _write(self, user_id: int, name: str, data: Mapping[str, Any]) -> None:
        def write() -> None:
            path = self._path(user_id, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f"{path.name}.tmp")
            # Invalid text is replaced, as in the history.
            text = json.dumps(data, ensure_ascii=False, indent=2)
            beside.write_text(text.encode("utf-8", "replace").decode(), encoding="utf-8")
            beside.replace(path)

        self._attempt(write)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            with self._lock:
                work()
        except (OSError, ValueError) as error:
            _LOG.warning("the copy in JSON cannot be written: %s", type(error).__name__)


def accepted(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat's metadata as the seed's own classes accept it."""
    return {
        **metadata,
        "title": short_title(metadata["title"]),
        "username": metadata["username"] or f"user_{metadata['user_id']}",
    }
