"""Plant passwords, and search what commands print for them; write every file, and look at its mode."""

import asyncio
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Final

from letopis.outbox import History
from letopis.store import Message
from tests.proof.harness import Setting, Tally
from tests.proof.inputs.commands import here
from tests.support.values.secrets import BODY, DSNS, NAME, OTHER, leaks


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


def passwords(setting: Setting) -> Tally:
    """Give commands URLs that hold passwords; the control is a message that quotes them."""
    names = list(DSNS)[: setting.many(len(DSNS), 3)]
    if setting.control:
        shown = [one for name in names for one in leaks(f"letopis: cannot connect to {DSNS[name]}")]
        return Tally(len(names), problems=shown)
    runs, found = commands(setting.folder, names)
    return Tally(runs, problems=found)


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
