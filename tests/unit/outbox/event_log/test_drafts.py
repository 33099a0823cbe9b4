"""Drafts: what is saved of a reply, its content while it grows, and which writers count as alive."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from letopis import Data, Event, File, History, InvalidInput, Limits, Message, OutboxFile, Reasoning, Text, ToolCall
from letopis.outbox.drafts.content import DraftContent
from letopis.outbox.drafts.writer_lock import WriterLock, writer_path
from letopis.outbox.event_log import drafts
from letopis.outbox.event_log.erasing import carry_out, erase_messages
from letopis.outbox.event_log.statements import on_cursor
from letopis.store.model.codec import encode
from letopis.store.model.identifiers import uuid7
from letopis.store.model.parts import Part
from letopis.store.rules.erasure_plan import Cause, ErasurePlan
from tests.support.platforms import open_descriptors, posix_only
from tests.support.relays import sql
from tests.support.sayings import present

T = TypeVar("T")
EMPTY = Message.assistant("")


async def run(outbox: OutboxFile, work: Callable[..., T], *args: Any, **words: Any) -> T:
    return await outbox.write(partial(on_cursor, work=lambda cursor: work(cursor, *args, **words)))


def draft(message_id: str = "m", *, text: str = "so far", writer: str = "w", event_id: UUID | None = None) -> Any:
    return drafts.Draft("c", message_id, event_id or UUID(int=7), "42", text, writer, started_at=1, updated_at=2)


async def owe(outbox: OutboxFile, name: str, *, owner: str | None = None, writer: str = "w") -> None:
    """Have a reply wait to be confirmed; by its name it is the older, the earlier in the alphabet."""
    draft = drafts.UnconfirmedDraft("c", name, UUID(int=ord(name[0])), owner, writer, ord(name[0]))
    await run(outbox, drafts.mark_unconfirmed, draft)


async def owed(outbox: OutboxFile, *owner: str) -> list[str]:
    return [one.message_id for one in await run(outbox, drafts.list_unconfirmed, *owner)]


async def test_the_place_of_a_draft_is_its_own(outbox: OutboxFile) -> None:
    assert not await run(outbox, drafts.save, draft()), "it was never begun"
    assert await run(outbox, drafts.begin, draft())
    assert await run(outbox, drafts.save, draft())
    assert not await run(outbox, drafts.begin, draft(writer="another"))
    assert not await run(outbox, drafts.save, draft(text="other", writer="another"))
    assert not await run(outbox, drafts.save, draft(text="other", event_id=UUID(int=8)))
    await run(outbox, drafts.delete, "c", "m", UUID(int=8))
    assert await run(outbox, drafts.find, "c", "m") == draft()


async def test_a_late_checkpoint_brings_no_draft_back(history: History) -> None:
    message = Message.assistant("whole")
    await history.append("c", message)
    assert not await run(history.outbox, drafts.begin, draft(message.id, event_id=message.event_id))
    await sql(history.outbox, "UPDATE letopis_outbox_lanes SET deleted_at = 1")
    assert not await run(history.outbox, drafts.begin, draft("another"))
    assert await run(history.outbox, drafts.list_writers) == []


async def test_what_is_to_be_gone_is_forgotten(outbox: OutboxFile) -> None:
    for name in ("a", "b"):
        await run(outbox, drafts.begin, draft(name))
        await owe(outbox, name)

    await run(outbox, erase_messages, "c", "a")
    assert await run(outbox, drafts.list_keys, "w") == [("c", "b")]
    assert await owed(outbox) == ["b"]
    await run(outbox, carry_out, ErasurePlan(lane="another", cause=Cause.RESET))
    assert await run(outbox, drafts.list_writers) == ["w"]
    await run(outbox, carry_out, ErasurePlan(lane="c", cause=Cause.RESET))
    assert await run(outbox, drafts.list_writers) == []


async def test_what_is_confirmed_is_owed_no_more(outbox: OutboxFile) -> None:
    for name in "abc":
        await owe(outbox, name, owner=f"o{name}")
    await run(outbox, drafts.mark_confirmed, [("c", "a"), ("c", "never owed"), ("another", "b")])
    assert (await owed(outbox), await owed(outbox, "oc")) == (["b", "c"], ["c"])


async def test_the_replies_of_those_who_are_gone_are_adopted_once(outbox: OutboxFile) -> None:
    await owe(outbox, "a", writer="gone")
    await owe(outbox, "b", writer="alive")
    assert [one.message_id for one in await run(outbox, drafts.adopt, ["gone"], "mine")] == ["a"]
    assert await run(outbox, drafts.adopt, ["gone"], "another") == []
    assert [one.writer for one in await run(outbox, drafts.list_unconfirmed)] == ["mine", "alive"]


def composed(*pieces: str | Part, limits: Limits | None = None) -> DraftContent:
    composition = DraftContent(EMPTY, limits or Limits())
    for piece in pieces:
        composition.add(piece)
    return composition


def test_pieces_of_text_are_one_text_and_other_parts_stand_where_they_were_said() -> None:
    text = composed("Good", "", " day", Text(" there"))
    assert (text.content, text.text, text.characters, text.empty) == (*("Good day there",) * 2, 14, False)
    assert composed("").empty and composed().content == ""
    call = ToolCall("call-1", "weather", {"in": "Oslo"})
    composition = composed(Reasoning("hm"), Reasoning(", so"), "It is ", "cold", call, "!", File("file:///a"))
    assert composition.content == (Reasoning("hm, so"), Text("It is cold"), call, Text("!"), File("file:///a"))
    assert composition.text == "It is cold\n!"
    assert composition.characters == 11


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("a\0b", "NUL"),
        ("a\ud800", "surrogate"),
        (b"bytes", "a part must be"),
        (None, "a part must be"),
        (Data(float("nan")), "finite"),
        (Text(7), "must be text"),  # type: ignore[arg-type]
        (File(uri=7), "must be text"),  # type: ignore[arg-type]
    ],
    ids=["nul", "surrogate", "bytes", "none", "nan", "text of a number", "file of a number"],
)
def test_what_cannot_be_kept_is_refused_and_changes_nothing(what: Any, reason: str) -> None:
    composition = composed("so far")
    with pytest.raises(InvalidInput, match=reason):
        composition.add(what)
    assert composition.content == "so far"


pieces = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
        st.builds(Reasoning, st.text('aé\n"\U0001f600', max_size=10)),
        st.builds(Data, st.lists(st.integers(-5, 5), max_size=3)),
    ),
    max_size=12,
)


@given(pieces, st.integers(200, 400))
def test_what_was_taken_can_be_appended_also_when_it_is_cut_off(said: list[str | Part], most: int) -> None:
    limits = Limits(max_bytes=most)
    composition = DraftContent(EMPTY, limits)
    taken = []
    for piece in said:
        try:
            composition.add(piece)
        except InvalidInput:
            continue
        taken.append(piece)

    message = Message.assistant(composition.content, status="interrupted")
    encode(Event.of(message, conversation_id="c"), conversation_id="c", limits=limits)
    assert composition.characters == sum(len(piece) for piece in taken if isinstance(piece, str))


def test_a_writer_lives_until_it_ends(tmp_path: Path) -> None:
    """By whatever way the file is named."""
    outbox, link = tmp_path / "bot.outbox.db", tmp_path / "link.db"
    link.symlink_to(outbox)
    one, another = WriterLock(outbox), WriterLock(link)
    assert one.writer is None
    writer = one.acquire()

    assert one.acquire() == one.writer == writer != another.acquire()
    assert not one.is_abandoned(writer)
    assert not another.is_abandoned(writer)
    assert not one.is_abandoned(another.acquire())
    assert writer_path(outbox, writer).stat().st_mode & 0o077 == 0 or sys.platform == "win32"

    one.release()
    one.release()

    assert another.is_abandoned(writer)
    assert not writer_path(outbox, writer).exists()
    another.release()
    assert list(tmp_path.iterdir()) == [link]


def test_a_name_that_nobody_ever_had_is_gone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("kept", encoding="utf-8")
    lock = WriterLock(tmp_path / "bot.outbox.db")
    assert all(lock.is_abandoned(writer) for writer in (uuid7().hex, "/../secret", ""))
    assert (tmp_path / "secret").read_text(encoding="utf-8") == "kept"


def test_what_the_dead_left_is_tidied_and_the_living_are_not_touched(tmp_path: Path) -> None:
    outbox = tmp_path / "bot[1].outbox.db"
    living, other_file = WriterLock(outbox), WriterLock(tmp_path / "other.db")
    writer = living.acquire()
    other_file.acquire()
    before = open_descriptors()
    for number in range(5):
        writer_path(outbox, f"{number:032x}").touch()

    WriterLock(outbox).remove_stale()

    assert {path.name for path in tmp_path.iterdir()} == {
        writer_path(outbox, writer).name,
        writer_path(tmp_path / "other.db", other_file.acquire()).name,
    }
    assert not WriterLock(outbox).is_abandoned(writer)
    assert open_descriptors() == before
    living.release()
    other_file.release()


@contextmanager
def started(program: str, outbox: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run a program with the path of an outbox; return its process and what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(program), str(outbox)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, present(process.stdout)
        finally:
            process.kill()


@posix_only("Windows has no fork")
def test_a_fork_neither_writes_for_its_parent_nor_keeps_it_alive(tmp_path: Path) -> None:
    program = """
        import os, sys, time
        from pathlib import Path
        from letopis.outbox.drafts.writer_lock import WriterLock
        from letopis.store import Closed

        lock = WriterLock(Path(sys.argv[1]))
        writer = lock.acquire()
        child = os.fork()
        if child == 0:
            assert lock.writer is None
            try:
                lock.acquire()
            except Closed:
                lock.release()
                print(writer, os.getpid(), flush=True)
        time.sleep(60)
    """
    outbox = tmp_path / "bot.outbox.db"
    with started(program, outbox) as (parent, said):
        writer, child = said.readline().split()
        try:
            assert not WriterLock(outbox).is_abandoned(writer)
            parent.kill()
            parent.wait()

            assert WriterLock(outbox).is_abandoned(writer)
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_those_who_look_at_once_hurt_nobody_who_begins(tmp_path: Path) -> None:
    """One process tidies without a pause while this one begins and ends."""
    outbox = tmp_path / "bot.outbox.db"
    program = """
        import sys
        from pathlib import Path
        from letopis.outbox.drafts.writer_lock import WriterLock

        lock = WriterLock(Path(sys.argv[1]))
        print("begun", flush=True)
        while True:
            lock.remove_stale()
    """
    with started(program, outbox) as (tidier, said):
        assert said.readline() == "begun\n"
        for _ in range(200):
            lock = WriterLock(outbox)
            writer = lock.acquire()
            assert writer_path(outbox, writer).exists()
            assert not WriterLock(outbox).is_abandoned(writer)
            lock.release()
        assert tidier.poll() is None
