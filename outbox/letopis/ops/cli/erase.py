"""``letopis history erase``: erase conversations, or everything of an owner or a person."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import existing_outbox, store_engine
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import FORCE, TIMEOUT, counted, emit, note, open_output, printable
from letopis.ops.cli.interface.progress import ProgressReport, deliver, progress
from letopis.ops.cli.interface.selection import YES, confirm, current_user
from letopis.store.database.store_identity import short_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from letopis.outbox.history.erasing import ErasureScope
    from letopis.outbox.history.history import History
    from letopis.store.erasures import Erasure, How, Kind, Unacknowledged


@verb(
    "letopis history erase telegram:4711 --reset --reason 'asked by the person'",
    "letopis history erase --owner 42 --delete --reason 'account closed' --wait",
    "letopis history erase --owner 42 --delete --reason 'account closed' --yes --json",
    "letopis history erase --person 42 --delete --reason 'asked' --wait --receipt 42.json",
    "letopis history erase --repeat --wait",
    json=True,
)
@click.argument("conversations", metavar="[CONVERSATION]...", nargs=-1)
@click.option("--owner", metavar="ID", help="All conversations of this owner, and the owner's records.")
@click.option(
    "--person",
    metavar="ID",
    help="What this person owns, as with --owner, and their messages in conversations of others.",
)
@click.option("--answers", is_flag=True, help="With --person: and the bot's answers to their messages there.")
@click.option("--repeat", is_flag=True, help="The erasures that a store restored from a backup has forgotten.")
@click.option("--reset", is_flag=True, help="Erase the content; the conversation goes on, empty, under its id.")
@click.option(
    "--delete", is_flag=True, help="Erase the content and delete the conversation: its id cannot be used again."
)
@click.option("--reason", metavar="TEXT", help="The reason; it is recorded. Write no content into it.")
@click.option("--by", metavar="NAME", help="Who asked for it; recorded.  [default: the user who runs the command]")
@click.option(
    "--receipt", metavar="FILE", type=click.Path(), help="Write what was erased, for `letopis db verify --receipt`."
)
@FORCE
@click.option("--wait", is_flag=True, help="Deliver it, and exit when the history store holds none of the content.")
@TIMEOUT
@YES
def erase(
    conversations: tuple[str, ...],
    owner: str | None,
    person: str | None,
    answers: bool,
    repeat: bool,
    reset: bool,
    delete: bool,
    reason: str | None,
    by: str | None,
    receipt: str | None,
    force: bool,
    wait: bool,
    timeout: float | None,
    yes: bool,
) -> None:
    """Erase conversations, or all those of an owner, for good.

    The content goes from the log, the search index and this outbox, when the relay has delivered the erasure. Ids,
    times and token counts stay. Backups keep theirs. With --owner the history store must be reachable: it records the
    erasure, every other outbox carries it out before it delivers anything more, and the last line names those that have
    not yet. A run that was interrupted is completed by running it again. Exits with 3 if nothing matched and no erasure
    is pending, with 1 if a hold forbids it or an operator has to unblock a conversation first, with 2 if confirmation
    is required and stdin is not a terminal.
    """
    if sum((bool(conversations), owner is not None, person is not None, repeat)) != 1:
        raise click.UsageError("Name conversations, or an owner with --owner, or a person with --person, or --repeat.")
    if receipt is not None and (len(conversations) > 1 or not wait or repeat):
        raise click.UsageError(
            "--receipt needs --wait, and --owner, --person or one conversation: it says what is gone."
        )
    if not repeat and reset == delete:
        raise click.UsageError(
            "Give --reset for conversations that go on under their id, such as telegram:4711, or --delete for those"
            " that end."
        )
    if repeat == (reason is not None) or (repeat and (reset or delete)):
        raise click.UsageError("Give a --reason; --repeat takes none, nor --reset or --delete: they stand as recorded.")
    if answers and person is None:
        raise click.UsageError("--answers are those to a --person.")
    kind: Kind = "conversation" if conversations else "owner" if person is None else "person"
    subjects = conversations or (person or owner or "",)
    how: How = "delete" if delete else "reset"
    with ExitStack() as files, progress("erasing", unit="conversations") as report:
        done = ErasureOutcome(kind, "" if conversations else subjects[0], report)
        document = None if receipt is None else files.enter_context(open_output(receipt, force=force))
        about = {"how": how, "reason": reason, "requested_by": by or current_user(), "answers": answers}
        asyncio.run(_run(done, () if repeat else subjects, about, document, wait=wait, longest=timeout, yes=yes))
        if document is not None and not done.complete:
            raise CommandExit(
                Exit.LATER, f"not complete yet: {done.pending} events are pending; no receipt was written"
            )
    value = {
        "erased": done.erased,
        "how": None if repeat else how,
        "owner" if person is None else "person": person or owner,
        "repeated": [erasure.number for erasure in done.repeated],
        **{name: getattr(done, name) for name in ("held", "pending", "blocked", "store_rows", "number")},
        "unacknowledged": done.unacknowledged,
    }
    emit(value, text=lambda: done.tell(waited=wait))
    if done.blocked:
        stuck = f"{counted(done.blocked, 'conversation')} blocked: nothing more of {_them(done.blocked)} is delivered"
        raise CommandExit(Exit.FAILED, f"not complete: {stuck} until an operator acts: see `letopis outbox list`")
    if wait and not done.complete:
        rows = f", {done.store_rows} rows are left to erase" if done.store_rows else ""
        raise CommandExit(Exit.LATER, f"not complete yet: {done.pending} events are pending{rows}; the relay continues")


@dataclass
class ErasureOutcome:
    """What became of it."""

    kind: Kind
    owner: str
    report: ProgressReport
    total: int | None = None  # conversations; not known where a person wrote in those of others
    erased: list[str] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)  # conversations of others, which stay without a person's messages
    held: list[str] = field(default_factory=list)
    repeated: list[Erasure] = field(default_factory=list)
    number: int | None = None
    pending: int = 0
    blocked: int = 0
    store_rows: int = 0
    unerased: int = 0
    untold: str = ""
    unacknowledged: list[Unacknowledged] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.pending or self.store_rows or self.unerased)

    def note(self, conversation_id: str) -> None:
        if conversation_id not in self.erased:
            self.erased.append(conversation_id)
        self.report(len(self.erased), total=self.total)

    def refuse(self, error: object) -> None:
        if str(error) not in self.held:
            self.held.append(str(error))

    def tell(self, *, waited: bool) -> None:
        for name in self.erased:
            click.echo(printable(name))
        others = len(self.shared.intersection(self.erased))
        whose = ", and all records of the owner" if self.owner else ""
        whose += f"; of {counted(others, 'other conversation')}, what the person wrote" if others else ""
        done = "erased" if self.complete and waited else "being erased"
        note(f"{counted(len(self.erased) - others, 'conversation')} {done}{whose}")
        for erasure in self.repeated:
            note(f"{erasure.kind} {printable(erasure.subject)}: recorded again, as erasure {erasure.number}")
        if waited and self.complete:
            note("the history store holds none of the content any more")
        elif not waited and not self.blocked:
            note("the relay delivers the erasure (`letopis relay --once` does it now)")
        for held in self.held:
            note(f"not erased: {printable(held)}")
        if self.untold:
            note(f"other outboxes are not told, and keep what they hold of it; run this again later: {self.untold}")
        for behind in self.unacknowledged:
            which = f"outbox {printable(behind.name)} ({short_id(behind.origin_id)})"
            note(f"{which} has erasures to carry out: it does so before it delivers anything more")
        if waited and self.complete and self.number is not None and not self.unacknowledged:
            note("every outbox has carried it out")


async def _run(
    done: ErasureOutcome,
    subjects: tuple[str, ...],
    about: Mapping[str, Any],
    document: BinaryIO | None,
    *,
    wait: bool,
    longest: float | None,
    yes: bool,
) -> None:
    """Append the erasures, none for those that the store has forgotten, and wait for them."""
    from letopis.outbox.history.history import History
    from letopis.store.errors import StoreUnavailable
    from letopis.store.model.events import utc_now
    from letopis.store.ops.receipts import ErasureScope, make_receipt

    config, scopes = settings(), list[ErasureScope]()

    async def look(number: int) -> None:
        if document is not None:
            async with store_engine(history.store.url) as engine, engine.connect() as connection:
                scopes.append(await ErasureScope.read(connection, number))

    options: dict[str, Any] = {"policy": config.policy, "retention": config.retention, "create": False}
    async with History(existing_outbox(config), store=config.store, relay=wait, **options) as history:
        try:
            words = await _find(history, done.kind, subjects, answers=about["answers"])
        except StoreUnavailable as error:
            raise CommandExit(Exit.LATER, f"{error}; nothing was erased") from error
        done.shared.update(*(found.messages for found in words.values()))
        done.total = None if done.shared else sum(len(found.conversations) for found in words.values())
        if not subjects:
            await _repeat(history, done, yes=yes)
        elif any(words.values()):
            confirm(_question(words, done.owner, delete=about["how"] == "delete"), yes=yes)
        elif not (done.owner and await _is_being_erased(history, done.owner)) and (
            document is None or await history.store.erasures.last(done.kind, subjects[0]) is None
        ):
            nothing = "no conversations and no records of this owner, and no erasure pending"
            raise CommandExit(Exit.NOTHING, nothing if done.owner else "nothing matched: deleted already")
        for subject, found in words.items():
            if found:
                await _erase(history, done, subject, {**about, "recorded": look}, needed=document is not None)
            elif done.owner or document is not None:
                done.number = await history.store.erasures.last(done.kind, subject)
                await look(done.number or 0)
        if wait:
            await deliver(history, done.report, longest=longest)
            await _finish(history, done, longest)
        if done.number is not None:
            done.unacknowledged = await history.store.erasures.unacknowledged()
        done.pending, done.blocked = await _left(history, done.owner, done.erased)
        if document is not None and done.complete:
            async with store_engine(history.store.url) as engine, engine.connect() as connection:
                document.write(await make_receipt(connection, done.number or 0, *scopes, now=utc_now()))


async def _find(history: History, kind: Kind, subjects: tuple[str, ...], *, answers: bool) -> dict[str, ErasureScope]:
    from letopis.outbox.history.erasing import find_words

    for name in subjects if kind == "conversation" else ():
        if await history.chat(name).conversation() is None:
            raise CommandExit(Exit.NOTHING, f"there is no conversation {name!r}; nothing was erased")
    return {subject: await find_words(history, kind, subject, answers=answers) for subject in subjects}


async def _erase(
    history: History, done: ErasureOutcome, subject: str, about: Mapping[str, Any], *, needed: bool
) -> None:
    from letopis.outbox.history.erasing import erase
    from letopis.store.database.faults import StoreFault

    try:
        erasure = await erase(history, done.kind, subject, erased=done.note, held=done.refuse, **about)
    except StoreFault as fault:
        if needed or done.owner:
            raise CommandExit(Exit.LATER, f"{fault}; nothing was erased") from fault
        # The conversation is erased here and in the store: the other outboxes cannot be told now.
        chat = history.chat(subject)
        await (chat.delete if about["how"] == "delete" else chat.reset)(reason=about["reason"])
        done.untold = str(fault)
        done.note(subject)
    else:
        done.number = erasure.number


async def _repeat(history: History, done: ErasureOutcome, *, yes: bool) -> None:
    """Show the holds of the store, which may have lost some as well; repeat what it has forgotten."""
    from letopis.outbox.event_log.known_erasures import missing_erasures
    from letopis.outbox.history.erasing import repeat_erasures

    if not (missing := await history.outbox.read(missing_erasures)):
        raise CommandExit(Exit.NOTHING, "the history store has forgotten no erasure that this outbox has carried out")
    holds = await history.store.erasures.holds()
    for erasure in missing:
        what = f"erasure {erasure.number} of {erasure.kind} {printable(erasure.subject)} ({erasure.how})"
        note(f"{what}, recorded {erasure.recorded_at:%Y-%m-%d %H:%M}Z")
    for hold in holds:
        note(f"on hold: {hold.kind} {printable(hold.subject)}: {printable(hold.reason)}")
    known = f"The store knows {counted(len(holds), 'hold')}; set those that it lost again first."
    confirm(f"{known} Repeat {counted(len(missing), 'erasure')} for good?", yes=yes)
    done.repeated = await repeat_erasures(history, erased=done.note, held=done.refuse)
    done.number = done.repeated[-1].number if done.repeated else None


async def _finish(history: History, done: ErasureOutcome, longest: float | None) -> None:
    """Carry out what the store erases in steps, and wait for the relay to do so here: of very many events."""
    import anyio

    from letopis.outbox.event_log.erasing import count_unerased

    with anyio.move_on_after(longest):
        most = 0
        while True:
            tasks = await history.store.pending_tasks(owner=done.owner or None)
            done.store_rows, most = tasks.rows, max(most, tasks.rows)
            done.unerased = await history.outbox.read(count_unerased)
            if not tasks.tasks:
                if not done.unerased or (await _left(history, done.owner, done.erased))[1]:
                    return
                await anyio.sleep(0.05)
            done.report(most - tasks.rows, total=most, title="erasing content", unit="rows")
            await history.store.run_pending_tasks()


async def _left(history: History, owner: str, erased: Iterable[str] = ()) -> tuple[int, int]:
    """Return how many events of an erasure are pending, and in how many blocked lanes."""
    from letopis.outbox.event_log.lookups import left_of_erasure

    return await history.outbox.read(lambda connection: left_of_erasure(connection, owner, erased))


async def _is_being_erased(history: History, owner: str) -> bool:
    """Return True if an earlier erasure of what an owner had is not complete."""
    pending, _ = await _left(history, owner)
    return pending > 0 or (await history.store.pending_tasks(owner=owner)).tasks > 0


def _question(words: Mapping[str, ErasureScope], owner: str, *, delete: bool) -> str:
    chosen = [conversation for subject in words.values() for conversation in subject.conversations]
    messages = sum(conversation.message_count for conversation in chosen)
    what = printable(chosen[0].conversation_id) if len(chosen) == 1 else counted(len(chosen), "conversation")
    whose = f" and all records of {printable(owner)}" if owner else ""
    if shared := sum(len(ids) for subject in words.values() for ids in subject.messages.values()):
        whose += f", and {counted(shared, 'message')} of theirs in other conversations"
    end = "Ids of conversations cannot be used again." if delete else "Conversations go on, empty, under their ids."
    return f"Erase {what} with {counted(messages, 'message')}{whose}, for good? {end}"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"
