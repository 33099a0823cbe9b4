"""Check that what was erased is in no row, and that each streamed reply becomes one message."""

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.proof.simulation.driver import connect
from tests.support.content_deeds import Gone
from tests.support.path_deeds import Broken

STREAMS: Final = "stream"  # the beginning of the names of conversations that only replies are streamed to
_SECRET: Final = re.compile(rb"secret\d{15}")
_REFERENCE: Final = re.compile(r":content:([0-9a-f]{64}):")
_OUTBOX_CONTENTS: Final = "SELECT CAST(name AS BLOB) FROM letopis_outbox_contents"
_STORED_CONTENTS: Final = (
    "SELECT CAST(record_key AS BLOB) FROM letopis_records WHERE substr(scope, 1, 3) = char(1) || 'm:'"
)
_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table'"
_TASKS: Final = "SELECT count(*) FROM letopis_tasks WHERE after < upto"
_DRAFTS: Final = "SELECT message_id, data FROM letopis_outbox_drafts"


def secrets_in(path: Path) -> set[str]:
    """Return the texts that may be erased and that are in some row of some table of a file."""
    texts = set[str]()
    with closing(connect(str(path), isolation_level=None)) as look:
        for (table,) in look.execute(_TABLES).fetchall():
            for row in look.execute(f'SELECT * FROM "{table}"').fetchall():
                texts |= secrets_of(row)
    return texts


def secrets_of(values: Iterable[object]) -> set[str]:
    """Return the texts that may be erased and that are in some values of rows."""
    given = (value.encode() if isinstance(value, str) else value for value in values)
    return {text.decode() for value in given if isinstance(value, bytes) for text in _SECRET.findall(value)}


def check_contents(outbox: Path, store: Path) -> None:
    """Check that the large content of two files at rest is what events show."""
    for path, kept, shown in (
        (outbox, _OUTBOX_CONTENTS, "letopis_outbox_log"),
        (store, _STORED_CONTENTS, "letopis_events"),
    ):
        with closing(connect(str(path), isolation_level=None)) as look:
            names = {bytes(row[0]) for row in look.execute(kept).fetchall()}
            events = look.execute(f"SELECT data FROM {shown} WHERE salt IS NOT NULL").fetchall()
        references = {name.encode() for row in events for name in _REFERENCE.findall(row[0])}
        if names - references:
            raise Broken(f"{path.name} keeps {len(names - references)} large contents that no event shows")
        if references - names:
            raise Broken(f"{path.name} lacks {len(references - names)} large contents that events show")


@dataclass
class Erased:
    """What one outbox was told to erase; the rows that may hold it are the outbox's own and the store's."""

    outbox: Path
    store: Path
    all: list[Gone] = field(default_factory=list)

    def add(self, gone: Gone) -> None:
        """Keep what was erased, and check the outbox."""
        self.all.append(gone)
        if gone.at_once and gone.text in secrets_in(self.outbox):
            raise Broken(f"{gone.text} was redacted, and is in a row of {self.outbox.name}")

    def unfinished(self) -> bool:
        """Return True if the store still erases in steps."""
        with closing(connect(str(self.store), isolation_level=None)) as look:
            return bool(look.execute(_TASKS).fetchone()[0])

    def check(self, delivered: Mapping[str, int], *, drained: bool) -> None:
        """Check the rows of both files, as far as they are delivered."""
        due = [gone.text for gone in self.all if drained or self._is_due(gone, delivered)]
        for path in (self.outbox, self.store) if due and not self.unfinished() else ():
            if left := secrets_in(path).intersection(due):
                raise Broken(f"{min(left)} was erased, which is delivered, and is in a row of {path.name}")

    def _is_due(self, gone: Gone, delivered: Mapping[str, int]) -> bool:
        return all(upto is not None and delivered.get(name, 0) >= upto for name, upto in gone.delivered.items())


@dataclass
class Stream:
    """A reply that a bot streams: what it has added, and whether it has begun to finish it."""

    text: str = ""
    finishing: bool = False


class Streams:
    """The replies that were streamed to one outbox, as far as they have been committed.

    :ivar begun: by message id.
    :ivar appended: those that are messages: whether they are interrupted, and their text.
    :ivar drafts: those that are drafts: the text of the last checkpoint.
    """

    def __init__(self) -> None:
        self.begun: dict[str, Stream] = {}
        self.appended: dict[str, tuple[bool, str]] = {}
        self.drafts: dict[str, str] = {}

    def committed(self, data: str) -> None:
        """Check the message of a reply that was just committed."""
        message = json.loads(data)
        name, text, interrupted = message["message_id"], message["content"], message.get("status") == "interrupted"
        if name in self.appended:
            raise Broken(f"reply {name!r} is appended twice")
        self.appended[name] = (interrupted, text)
        stream, saved = self.begun[name], self.drafts.get(name, "")
        if not interrupted and not (stream.finishing and text == stream.text):
            raise Broken(f"reply {name!r} is complete in the log, and was not finished so")
        if interrupted and not (text and stream.text.startswith(text)):
            raise Broken(f"reply {name!r} is in the log with another text than was added")
        if interrupted and not text.startswith(saved):
            raise Broken(f"reply {name!r} lost what its last checkpoint held")

    def check_drafts(self, look: sqlite3.Connection) -> None:
        """Check the drafts after a commit: one ends only in its message."""
        # A reply that has begun and holds no words yet is a row without data, and may end as none.
        rows = look.execute(_DRAFTS).fetchall()
        drafts = {name: json.loads(data).get("content", "") for name, data in rows if data}
        for name in self.drafts.keys() - drafts.keys() - self.appended.keys():
            raise Broken(f"the draft of reply {name!r} is gone, and it is no message")
        for name in drafts.keys() & self.appended.keys():
            raise Broken(f"reply {name!r} is a message, and a draft that would become another")
        self.drafts = drafts

    def check_finished(self, message_id: str) -> None:
        """Check the message after ``finish()`` has returned."""
        if self.appended.get(message_id, (True, ""))[0]:
            raise Broken(f"reply {message_id!r} was finished, and is not in the log as complete")
