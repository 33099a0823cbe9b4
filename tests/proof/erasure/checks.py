"""Compare what every reader shows, and every byte of every file, with what the book says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from letopis import ConversationStore, History
from letopis.ops.doctor.check_store import check_store
from letopis.ops.doctor.finding import Severity
from letopis.ops.verify import find_problems as problems_of_file
from letopis.ops.verify import read_reference
from letopis.outbox.history.options import Unconfirmed
from tests.proof.erasure.book import Box, Chat, Word
from tests.proof.erasure.judgement import Fate, Judgement
from tests.proof.erasure.readers import Console, of_all, of_chat
from tests.support.sayings import differences, problems

VERIFIED_SHARE: Final = 0.5
EXAMINED_SHARE: Final = 0.1
"""Of outboxes that a tool looks at, since it costs more than the whole program."""


class Checks:
    """The checks of one program at rest."""

    def __init__(self, judged: Judgement, prefix: str, chance: Any) -> None:
        self.judged = judged
        self.problems: list[str] = list(judged.lost)
        self.counts: Counter[str] = Counter()
        self._prefix = prefix
        self._pattern = re.compile(rf"{re.escape(prefix)}w\d+x")
        self._bytes = re.compile(self._pattern.pattern.encode())
        self._chance = chance
        self._words = {word.text: word for word in judged.book.words}
        self._kept = {word: judged.kept(word) for word, fate in judged.fates.items() if fate is Fate.GONE}
        self._chats = [chat for chat in judged.book.chats.values() if judged.events(chat)]
        self._visible = {chat: self._may_be_seen(chat) for chat in judged.book.chats.values()}
        self._everything = set().union(*self._visible.values())
        for fate in judged.fates.values():
            self.counts[fate.name.lower()] += 1

    def _may_be_seen(self, chat: Chat) -> set[str]:
        """Return the words that readers of a conversation may show."""
        judged = self.judged
        own = {word.text for word in judged.book.words if word.act.chat is chat and judged.fates[word] is not Fate.GONE}
        for ancestor, upto in judged.chain(chat).items():
            for word in judged.book.words:
                entry = judged.entries[word]
                there = word.act.chat is ancestor and entry is not None and entry.version <= upto
                if there and (judged.fates[word] is not Fate.GONE or self._kept[word] is not False):
                    own.add(word.text)
        return own

    def _compare(self, where: str, text: str, may: set[str], must: Iterable[Word] = ()) -> None:
        shown = set(self._pattern.findall(text))
        for name in sorted(shown - may):
            self.problems.append(f"{where} shows {self._told(name)}")
        for word in must:
            if word.text not in shown:
                self.problems.append(f"{where} does not show {self._told(word.text)}")
            self.counts["seen"] += 1

    def _told(self, name: str) -> str:
        word = self._words.get(name)
        if word is None:
            return f"{name}, which nobody has said"
        entry, effects = self.judged.entries[word], [tuple(effect) for effect in self.judged.effects[word]]
        return f"{name} ({word.kind} of {word.act.chat.name}, {entry and entry.version}, {effects})"

    # Readers.

    async def read(self, source: History | ConversationStore, who: str) -> None:
        judged = self.judged
        for chat in self._chats:
            own = [word for word in judged.book.words if word.act.chat is chat]
            alive = [word for word in own if judged.fates[word] is Fate.ALIVE]
            deleted = bool(judged.events(chat, "conversation.deleted"))
            told = [word for word in alive if word.kind != "record"] if not deleted else []
            current = list(self._current(alive, own)) if not deleted else []
            last = max(entry.version for entry in judged.events(chat))
            erasing = [entry.version - 1 for entry in judged.events(chat, *ERASING_TYPES)]
            versions = {*erasing, self._chance.randint(1, last)}
            must = {"events": told, "every message": current}
            names = {act.message for act in judged.book.acts if act.chat is chat and act.message and act.verb != "end"}
            async for reader, text in of_chat(source, chat.name, versions=versions, messages=names):
                self._compare(f"{who}: {reader} of {chat.name}", text, self._visible[chat], must.get(reader, ()))
            if inherited := list(self._inherited(chat)):
                start = judged.start(chat)
                page = await source.messages(chat.name, last=None, every=True, as_of=start.version if start else 1)
                self._compare(f"{who}: beginning of {chat.name}", repr(page.items), self._visible[chat], inherited)
        records = [word for word in judged.book.words if word.kind == "record" and judged.fates[word] is Fate.ALIVE]
        async for reader, text in of_all(source):
            must = {"export": records}
            self._compare(f"{who}: {reader}", text, self._everything, must.get(reader, ()))

    def _current(self, alive: list[Word], own: list[Word]) -> Iterator[Word]:
        """Yield the words that the messages of a conversation show now."""
        last: dict[str, Word] = {}
        for word in own:
            if word.kind in ("text", "edit"):
                before = last.get(word.act.message)
                entry = self.judged.entries[word]
                place = self.judged.entries[before] if before is not None else None
                if before is None or entry is None or place is None or entry.version > place.version:
                    last[word.act.message] = word
        return (word for word in last.values() if word in alive)

    def _inherited(self, chat: Chat) -> Iterator[Word]:
        """Yield the words that a fork must have begun with."""
        judged = self.judged
        if list(judged.ends(chat)):
            return
        for ancestor, upto in judged.chain(chat).items():
            if any(
                entry.version <= upto
                for entry in judged.events(
                    ancestor, "conversation.rewound", "conversation.deleted", "conversation.trimmed"
                )
            ):
                return
            texts: dict[str, list[Word]] = {}
            for word in judged.book.words:
                entry = judged.entries[word]
                if word.act.chat is ancestor and word.kind in ("text", "edit") and entry and entry.version <= upto:
                    texts.setdefault(word.act.message, []).append(word)
            for words in texts.values():
                word = max(words, key=lambda word: judged.entries[word].version)  # type: ignore[union-attr]
                if judged.fates[word] is Fate.ALIVE or (judged.fates[word] is Fate.GONE and self._kept[word]):
                    yield word

    async def console(self, history: History) -> None:
        titles = {word.text for word in self.judged.book.words if word.kind == "title"} & self._everything
        async for reader, text in Console(history).pages([chat.name for chat in self._chats]):
            chat = self.judged.book.chats.get(reader.removeprefix("console "))
            # Beside a conversation are the titles of its owner's others.
            self._compare(reader, text, self._everything if chat is None else self._visible[chat] | titles)

    def handed(self, where: str, what: Iterable[Any]) -> None:
        """Check what a sender or a callback was given."""
        self._compare(where, repr(list(what)), self._everything)

    def unconfirmed(self, box: Box, replies: Iterable[Unconfirmed]) -> None:
        """Check what an outbox lists as unconfirmed: nothing that it has erased, but by a trim without its text."""
        for reply in replies:
            words = {word for word in self.judged.book.words if word.act.message == reply.message_id}
            for word in words:
                gone = word.kind == "text" and self.judged.fates[word] is Fate.GONE and word.act.box is box
                if gone and any(effect.file and not effect.trimmed for effect in self.judged.effects[word]):
                    self.problems.append(f"{box.name} lists as unconfirmed {self._told(word.text)}")
        self.handed(f"{box.name}: unconfirmed", replies)

    # Bytes.

    def in_file(self, path: Path, box: Box) -> None:
        self._in_bytes(path, self.judged.in_file(box))

    def in_store(self, path: Path) -> None:
        fates = self.judged.fates
        self._in_bytes(
            path, {word.text for word in fates if fates[word] is not Fate.GONE or self._kept[word] is not False}
        )

    def _in_bytes(self, path: Path, may: set[str]) -> None:
        for part in (path, Path(f"{path}-wal")):
            with suppress(FileNotFoundError):
                held = {word.decode() for word in self._bytes.findall(part.read_bytes())}
                self.counts["searched"] += 1
                for name in sorted(held - may):
                    self.problems.append(f"{part.name} holds {self._told(name)}")

    # What the tools say.

    async def verify(self, store: ConversationStore, url: str, paths: Iterable[Path]) -> None:
        self.problems += [f"db verify: {problem}" for problem in await problems(store)]
        self.problems += [f"rows and log differ: {problem}" for problem in await differences(store)]
        for path in paths:
            if self._chance.random() < VERIFIED_SHARE:
                self.problems += [f"{path.name}: outbox verify: {problem}" for problem in problems_of_file(path)]
            if self._chance.random() < EXAMINED_SHARE:
                async for finding in check_store(url, read_reference(path)):
                    if finding.level is Severity.FAIL:
                        self.problems.append(f"doctor of {path.name}: {finding}")


ERASING_TYPES = ("conversation.deleted", "conversation.trimmed", "conversation.rewound", "message.redacted")
