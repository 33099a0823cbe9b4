"""Plant secrets and personal words, let everything speak, and search what it says for them."""

import asyncio
import json
import logging
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History, Rules
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.telemetry.logging import escape
from letopis.store import ConversationStore, LetopisError, Message
from letopis.store.model.codec import encode
from letopis.store.model.events import Event
from letopis.store.model.identifiers import uuid7
from letopis.store.rules.apply_plan import LaneBatch, Origin, SequencedEvent
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.commands import here
from tests.proof.inputs.running import BLOCK_AT_ONCE
from tests.proof.security.isolation import heard
from tests.support.fix_disk import NotHere
from tests.support.store_changes import run_there
from tests.support.values.secrets import BODY, DSNS, HOSTILE, NAME, OTHER, PASSWORD, leaks

_SQLITE: Final = """
CREATE TRIGGER quote BEFORE INSERT ON letopis_events WHEN NEW.conversation_id LIKE 'poison%'
BEGIN SELECT RAISE(ABORT, 'refused: ' || NEW.data); END
"""
_FUNCTION: Final = """
CREATE FUNCTION quote_and_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'refused: %', NEW USING ERRCODE = 'check_violation', DETAIL = NEW::text, HINT = NEW::text;
END $$
"""
_POSTGRESQL: Final = """
CREATE TRIGGER quote BEFORE INSERT ON letopis_events FOR EACH ROW WHEN (NEW.conversation_id LIKE 'poison%')
EXECUTE FUNCTION quote_and_refuse()
"""
_MARIADB: Final = """
CREATE TRIGGER quote BEFORE INSERT ON letopis_events FOR EACH ROW BEGIN
  DECLARE words VARCHAR(500);
  IF LEFT(NEW.conversation_id, 6) = 'poison' THEN
    SET words = LEFT(CONCAT('refused: ', NEW.data), 120);
    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = words, MYSQL_ERRNO = 3819;
  END IF;
END
"""
UNABLE: Final = {
    "sqlite": "RAISE takes an expression since SQLite 3.47" if sqlite3.sqlite_version_info < (3, 47) else ""
}
"""Which store's errors quote no value, and why."""
TRIGGERS: Final = {"sqlite": (_SQLITE,), "postgresql": (_FUNCTION, _POSTGRESQL), "mariadb": (_MARIADB,)}
"""Makes a store refuse the messages of a conversation, and quote them in its error."""


class Collector:
    """A channel that keeps what it is to send."""

    name = "collector"
    recipient = "collector"

    def __init__(self) -> None:
        self.got: list[str] = []

    async def send(self, alert: Alert) -> None:
        self.got.append(f"{alert!r}")


def commands(folder: Path, names: Sequence[str]) -> tuple[int, list[str]]:
    """Run verbs with URLs that hold passwords, by option, environment, file and ``letopis.toml``."""
    runs, found = 0, []
    secret, toml = folder / "secret", folder / "letopis.toml"
    asyncio.run(_waiting(folder / "bot.outbox.db"))
    with chdir(folder):
        for name in names:
            dsn = DSNS[name]
            for words in (("status",), ("doctor", "--json"), ("relay", "--once", "--debug"), ("db", "check")):
                for arguments, environment, in_file, in_toml in (
                    ((*words, "--store", dsn), {}, "", ""),
                    (words, {"LETOPIS_STORE": dsn}, "", ""),
                    (words, {"LETOPIS_STORE_FILE": "secret"}, dsn, ""),
                    (words, {}, "", f'store = "{dsn}"\n'),
                ):
                    secret.write_text(in_file, encoding="utf-8")
                    secret.chmod(0o600)
                    toml.write_text(in_toml, encoding="utf-8")
                    runs += 1
                    said = here(arguments, environment)
                    found += [f"{name}, {' '.join(words)}: {one}" for one in leaks(said.out + said.err)]
                    if words[0] in ("relay", "db") and (not said.code or not said.out + said.err):
                        found.append(f"{name}, {' '.join(words)}: ended with {said.code} and said nothing")
    return runs, found


async def _waiting(path: Path) -> None:
    async with History(path, relay=False, watch=False) as history:
        await history.append("c1", Message.user(BODY, name=NAME, metadata={"token": OTHER}))


async def _heard(setting: Setting) -> dict[str, str]:
    """Let a store quote messages in its errors; return the exception, the log, the alerts and the figures."""
    collector = Collector()
    async with ConversationStore.open(setting.url, migrate=True) as store:
        await run_there(setting.url, *TRIGGERS[setting.kind])
        error = await _refused(store)
        with heard() as streams:
            logging.getLogger("sqlalchemy.engine").setLevel(logging.WARNING)
            given: Any = {"policy": BLOCK_AT_ONCE, "rules": Rules(hold=0.0, stuck_after=0.0, resolve_after=0.1)}
            path = setting.folder / "planted.outbox.db"
            async with History(path, store=store, channels=(collector,), **given) as history:
                for name in (HOSTILE, "fine"):
                    await history.append(name, Message.user(BODY, name=NAME, metadata={"token": OTHER}), owner="owner")
                for _ in range(100):
                    status = await history.status()
                    if status.lanes["blocked"] and collector.got:
                        break
                    await asyncio.sleep(0.1)
    return {
        "exception": f"{error} {error!r} {getattr(error, '__notes__', '')} {escape(error)}",
        "log": "".join(stream.getvalue() for stream in streams),
        "alerts": "".join(collector.got),
        "status": json.dumps(status.to_json(), default=str) if status.lanes["blocked"] else "",
    }


def quoted(setting: Setting) -> Tally:
    """Let everything speak that has met an error with a message in it, and the command about what is blocked."""
    if reason := UNABLE.get(setting.kind):
        raise NotHere(reason)
    shown = asyncio.run(_heard(setting))
    with chdir(setting.folder):
        for words in (("status", "--json"), ("doctor", "--json"), ("outbox", "list"), ("healthcheck",)):
            said = here((*words, "--outbox", "planted.outbox.db", "--store", setting.url))
            shown[" ".join(words)] = said.out + said.err
    tally = Tally(len(shown), problems=leaks(shown["exception"], ()))
    for what, text in shown.items():
        tally.blame((one for one in (BODY, NAME, OTHER, PASSWORD) if one in text), where=what)
        tally.require(text != "", f"{what}: says nothing")
    return tally


def passwords(setting: Setting) -> Tally:
    """Give commands URLs that hold passwords; the control is a message that quotes them."""
    names = list(DSNS)[: setting.many(len(DSNS), 3)]
    if setting.control:
        shown = [one for name in names for one in leaks(f"letopis: cannot connect to {DSNS[name]}")]
        return Tally(len(names), problems=shown)
    runs, found = commands(setting.folder, names)
    return Tally(runs, problems=found)


async def _refused(store: ConversationStore) -> BaseException:
    event = encode(Event.of(Message.user(BODY, name=NAME), conversation_id="poison"), conversation_id="poison")
    origin = Origin(origin_id=uuid7(), epoch=1, name="planted")
    batch = LaneBatch(conversation_id="poison", deliveries=(SequencedEvent(sequence=1, event=event),))
    try:
        await store.apply(origin, [batch])
    except LetopisError as error:
        return error
    return AssertionError("the trigger refused nothing")


UMASKS: Final = (0o000, 0o022, 0o077)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the mask of this process for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def looked_at(folder: Path) -> set[tuple[str, int]]:
    """Return the files of a folder, and their modes."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return {(path.name, stat.S_IMODE(path.stat().st_mode)) for path in files}


def loose(files: Iterable[tuple[str, int]]) -> list[str]:
    """Return which files others may read or write."""
    return [f"{name} has mode {mode:04o}" for name, mode in sorted(files) if mode & 0o077]


def modes(setting: Setting) -> Tally:
    """Write all that Letopis writes, under each mask; nothing of it may others read."""
    tally = Tally()
    for mask in UMASKS[: setting.many(len(UMASKS), 1)]:
        place = setting.folder / f"mask-{mask:03o}"
        place.mkdir(mode=0o700)
        with chdir(place), umask(mask):
            files = asyncio.run(_said(place))
            for words in (
                ("init", "--config", "letopis.toml"),
                ("init",),
                ("history", "export", "jsonl", "export.jsonl"),
                ("outbox", "export", "--file", "pending.jsonl"),
                ("outbox", "salvage", "salvaged.db"),
            ):
                here(words)
        files |= looked_at(place)
        tally.count += len(files)
        tally.blame(loose(files), where=f"umask {mask:03o}")
    return tally


async def _said(place: Path) -> set[tuple[str, int]]:
    async with History(place / "bot.outbox.db", watch=False) as history:
        for number in range(3):
            await history.append("chat", Message.user(f"words {number}"))
        await history.drained(timeout=20)
        async with history.reply("chat") as reply:
            await reply.add("words")
        files = looked_at(place)  # while it is open, with the files of the log beside it
    async with History(place / "bot.outbox.db", relay=False, watch=False) as history:
        await history.append("chat", Message.user("pending"))
    return files


def unguarded(setting: Setting) -> Tally:
    """The control: a file that is just opened, under a mask that takes nothing away."""
    with umask(0o000):
        (setting.folder / "plain.db").write_bytes(b"")
    return Tally(1, problems=loose(looked_at(setting.folder)))
