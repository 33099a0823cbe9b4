"""Keep the files as which long answers are sent, each under the id of its message."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from letopis.store.cancellation import run_to_completion


class AnswerFiles:
    """The files of one bot. The id of a message leads to its file, whatever has become of the message's content.

    :param folder: created when the first file is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would look at the disk

    def path(self, message_id: str) -> Path:
        """Return where the file of an answer belongs."""
        return self._folder / f"{message_id}.txt"

    async def write(self, message_id: str, text: str) -> Path:
        """Write a file durably, readable by its owner only. After a cancellation or an error, there is none.

        :raises OSError: it cannot be written.
        """
        path = self.path(message_id)
        try:
            await run_to_completion(asyncio.to_thread(_write, path, text))
        except BaseException:  # a cancellation too: it has been written by then
            await self.remove([message_id])
            raise
        return path

    async def remove(self, message_ids: Iterable[str]) -> None:
        """Remove the files of those messages that have one."""
        # Answers have ids of their own; others may be any text, and are no names of files.
        paths = [self.path(one) for one in message_ids if _is_uuid(one)]
        await run_to_completion(asyncio.to_thread(_remove, paths))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove([path])  # of an answer that is sent again after a crash
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
