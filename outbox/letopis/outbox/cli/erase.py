"""``letopis history erase``: erase conversations, or everything of an owner or a person."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click

from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit
from letopis.outbox.cli.interface.locations import existing_outbox, store_engine
from letopis.outbox.cli.interface.options import settings, verb
from letopis.outbox.cli.interface.output import FORCE, TIMEOUT, counted, emit, note, open_output, printable
from letopis.outbox.cli.interface.progress import ProgressReport, deliver, progress
from letopis.outbox.cli.interface.selection import YES, confirm, current_user
from letopis.store.database.store_identity import short_id

if TYPE_CHECKING:
    from letopis.outbox.history.history import History
    from letopis.store.erasures import Erasure, Kind, Unacknowledged
    from letopis.store.errors import Held
    from letopis.store.maintenance.receipt import ErasureScope
    from letopis.store.model.conversations import Conversation


@verb(
    "letopis history erase telegram:4711 --reset --reason 'asked by the person'",
    "letopis history erase --owner 42 --delete --reason 'account closed' --wait",
    "letopis history erase --owner 42 --delete --reason 'account closed' --yes --json",
    "letopis history erase --person 42 --delete --reason 'asked' --wait --receipt 42.json",
    json=True,
)
@click.argument("conversations", metavar="[CONVERSATION]...", nargs=-1)
@click.option("--owner", metavar="ID", help="All conversations of this owner, and the owner's records.")
@click.option(
    "--person",
    metavar="ID",
    help="What this person owns, as with --owner, and their messages in conversations of others.",
)
@click.option("--reset", is_flag=True, help="Erase the content; the conversation goes on, empty, under its id.")
@click.option(
    "--delete", is_flag=True, help="Erase the content and delete the conversation: its id cannot be used again."
)
@click.option("--reason", metavar="TEXT", required=True, help="The reason; it is recorded. Write no content into it.")
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
    reset: bool,
    delete: bool,
    reason: str,
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
    is pending, with 1 if a hold forbids it, with 2 if confirmation is required and stdin is not a terminal.
    """
    if sum((bool(conversations), owner is not None, person is not None)) != 1:
        raise click.UsageError("Name conversations, or an owner with --owner, or a person with --person.")
    if receipt is not None and (len(conversations) > 1 or not wait):
        raise click.UsageError(
            "--receipt needs --wait, and --owner, --person or one conversation: it says what is gone."
        )
    if reset == delete:
        raise click.UsageError(
            "Give --reset for conversations that go on under their id, such as telegram:4711, or --delete for those"
            " that end."
        )
    kind: Kind = "conversation" if conversations else "owner" if person is None else "person"
    owner = owner if person is None else person
    with ExitStack() as files, progress("erasing", unit="conversations") as report:
        work = _Erasure(reason=reason, by=by or current_user(), delete=delete, kind=kind, report=report)
        document = None if receipt is None else files.enter_context(open_output(receipt, force=force))
        pending = asyncio.run(work.run(conversations, owner, wait, timeout, yes, document))
        if document is not None and not work.has_receipt:
            raise CommandExit(Exit.LATER, f"not complete yet: {pending} events are pending; no receipt was written")
    emit(
        {
            "erased": work.erased,
            "how": "delete" if delete else "reset",
            "owner" if person is None else "person": owner,
            "held": work.held,
            "pending": pending,
            "store_rows": work.store_rows,
            "number": work.number,
            "unacknowledged": [shown_outbox(behind) for behind in work.unacknowledged],
        },
        text=lambda: _tell(work, pending, owner, waited=wait),
    )
    if wait and (pending or work.store_rows or work.unerased):
        rows = f", {work.store_rows} rows are left to erase" if work.store_rows else ""
        raise CommandExit(Exit.LATER, f"not complete yet: {pending} events are pending{rows}; the relay continues")


class _Erasure:
    def __init__(self, *, reason: str, by: str | None, delete: bool, kind: Kind, report: ProgressReport) -> None:
        self._reason = reason
        self._by = by
        self._delete = delete
        self._kind: Kind = kind
        self._report = report
        self._total: int | None = None
        self.held: list[str] = []
        self.has_receipt = False
        self.erased: list[str] = []
        self.shared = set[str]()  # conversations of others, which stay without a person's messages
        self.store_rows = self.unerased = 0
        self.number: int | None = None
        self.untold = ""
        self.unacknowledged: list[Unacknowledged] = []

    async def run(
        self,
        names: tuple[str, ...],
        owner: str | None,
        wait: bool,
        longest: float | None,
        yes: bool,
        document: BinaryIO | None,
    ) -> int:
        """Append the erasures; return how many events are pending then."""
        from letopis.outbox.history.erasing import conversations_of, erase_owner, erase_person, shared_messages
        from letopis.outbox.history.history import History
        from letopis.store.errors import StoreUnavailable
        from letopis.store.maintenance.receipt import ErasureScope

        config = settings()
        path = existing_outbox(config)
        async with History(
            path, store=config.store, relay=wait, create=False, policy=config.policy, retention=config.retention
        ) as history:
            try:
                chosen = await (_named(history, names) if owner is None else conversations_of(history, owner))
            except StoreUnavailable as error:
                raise CommandExit(Exit.LATER, f"{error}; nothing was erased") from error
            subject = names[0] if owner is None else owner  # of a receipt
            records = owner is not None and await _has_records(history, owner)
            shared = 0
            if owner is not None and self._kind == "person":
                async for conversation_id, message_ids in shared_messages(history, owner):
                    self.shared.add(conversation_id)
                    shared += len(message_ids)
            self._total = None if shared else len(chosen)  # in which conversations a person wrote is known at the end
            if chosen or records or shared:
                confirm(_question(chosen, owner, shared, delete=self._delete), yes=yes)
            elif owner is None or not await _is_being_erased(history, owner):
                earlier = None if document is None else await _last_erasure(history, self._kind, subject)
                if earlier is None:
                    nothing = "no conversations and no records of this owner, and no erasure pending"
                    raise CommandExit(Exit.NOTHING, "nothing matched: deleted already" if owner is None else nothing)
                self.number = earlier.number
            if owner is None:
                for conversation in chosen:
                    await self._register(history, conversation.conversation_id, needed=document is not None)
            scope = None
            if document is not None:
                async with store_engine(history.store.url) as engine, engine.connect() as connection:
                    scope = await ErasureScope.read(connection, self._kind, subject)
            if owner is None:
                for conversation in chosen:
                    chat = history.chat(conversation.conversation_id)
                    await (chat.delete if self._delete else chat.reset)(reason=self._reason)
                    self._note(conversation.conversation_id)
            elif chosen or records or shared:
                about: Any = {"how": self._how, "reason": self._reason, "requested_by": self._by, "erased": self._note}
                if self._kind == "person":
                    erasure = await erase_person(history, owner, held=self._note_held, **about)
                else:
                    erasure = await erase_owner(history, owner, **about)
                self.number = erasure.number
            elif self.number is None and (earlier := await _last_erasure(history, self._kind, owner)) is not None:
                self.number = earlier.number
            if wait:
                await deliver(history, self._report, longest=longest)
                await self._finish(history, owner, longest)
            if self.number is not None:
                self.unacknowledged = await history.store.erasures.unacknowledged()
            pending = (await history.status()).pending
            if document is not None and scope is not None and not (pending or self.store_rows or self.unerased):
                document.write(await self._receipt(history, scope))
                self.has_receipt = True
            return pending

    async def _receipt(self, history: History, scope: ErasureScope) -> bytes:
        from letopis.store.maintenance.receipt import make_receipt
        from letopis.store.model.events import utc_now

        async with store_engine(history.store.url) as engine, engine.connect() as connection:
            return await make_receipt(connection, self.number or 0, scope, now=utc_now())

    @property
    def _how(self) -> Literal["reset", "delete"]:
        return "delete" if self._delete else "reset"

    async def _register(self, history: History, conversation_id: str, *, needed: bool) -> None:
        """Have other outboxes erase what they hold of a conversation, if the history store can be told."""
        from letopis.outbox.history.erasing import register
        from letopis.store.database.faults import StoreFault

        about: Any = {"how": self._how, "reason": self._reason, "requested_by": self._by}
        try:
            erasure = await register(history.outbox, history.store, "conversation", conversation_id, **about)
        except StoreFault as fault:
            if needed:
                raise CommandExit(Exit.LATER, f"{fault}; nothing was erased") from fault
            self.untold = str(fault)
        else:
            self.number = erasure.number

    def _note(self, conversation_id: str) -> None:
        if conversation_id not in self.erased:
            self.erased.append(conversation_id)
        self._report(len(self.erased), total=self._total)

    def _note_held(self, error: Held) -> None:
        if (told := str(error)) not in self.held:
            self.held.append(told)

    async def _finish(self, history: History, owner: str | None, longest: float | None) -> None:
        """Carry out what the store erases in steps, and wait for the relay to do so here: of very many events."""
        import anyio

        from letopis.outbox.event_log.effects import count_unerased

        with anyio.move_on_after(longest):
            most = 0
            while True:
                tasks = await history.store.pending_tasks(owner=owner)
                self.store_rows, most = tasks.rows, max(most, tasks.rows)
                self.unerased = await history.outbox.read(count_unerased)
                if not tasks.tasks:
                    if not self.unerased:
                        return
                    await anyio.sleep(0.05)
                self._report(most - tasks.rows, total=most, title="erasing content", unit="rows")
                await history.store.run_pending_tasks()


async def _named(history: History, names: tuple[str, ...]) -> list[Conversation]:
    chosen: list[Conversation] = []
    for name in dict.fromkeys(names):
        conversation = await history.chat(name).conversation()
        if conversation is None:
            raise CommandExit(Exit.NOTHING, f"there is no conversation {name!r}; nothing was erased")
        if conversation.state != "deleted":
            chosen.append(conversation)
    return chosen


async def _last_erasure(history: History, kind: Kind, subject: str) -> Erasure | None:
    """Return the last erasure of an owner or a person that the history store has recorded."""
    last, number = None, 0
    while page := await history.store.erasures.after(number):
        number = page[-1].number
        of_subject = [erasure for erasure in page if (erasure.kind, erasure.subject) == (kind, subject)]
        last = of_subject[-1] if of_subject else last
    return last


async def _has_records(history: History, owner: str) -> bool:
    """Return True if the history store has records of an owner, or the outbox tells anything of them."""
    from letopis.outbox.event_log.lookups import holds_records_of

    if await history.outbox.read(lambda connection: holds_records_of(connection, owner)):
        return True
    after: str | None = None
    while True:
        page = await history.records(owner=owner).list(limit=1, after=after, values=False)
        if len(page) or (after := page.next) is None:
            return len(page) > 0


async def _is_being_erased(history: History, owner: str) -> bool:
    """Return True if an earlier erasure of what an owner had is not complete."""
    from letopis.outbox.event_log.lookups import erases_owner

    pending = await history.outbox.read(lambda connection: erases_owner(connection, owner))
    return pending or (await history.store.pending_tasks(owner=owner)).tasks > 0


def _question(chosen: list[Conversation], owner: str | None, shared: int, *, delete: bool) -> str:
    if shared:
        own = f"{len(chosen)} conversations of {printable(owner or '')}"
        return f"Erase {own}, and {shared} messages of theirs in other conversations, for good?"
    if not chosen:
        return f"Erase the records of owner {printable(owner or '')} for good?"
    messages = sum(conversation.message_count for conversation in chosen)
    what = printable(chosen[0].conversation_id) if len(chosen) == 1 else f"{len(chosen)} conversations"
    whose = "" if owner is None else f" of owner {printable(owner)}"
    end = "Their ids cannot be used again." if delete else "They go on, empty, under their ids."
    return f"Erase {what}{whose}, {messages} messages, for good? {end}"


def shown_outbox(behind: Unacknowledged) -> dict[str, Any]:
    """Return an outbox that has not acknowledged all erasures as JSON shows it."""
    return {
        "name": behind.name,
        "origin_id": str(behind.origin_id),
        "carried_out": behind.carried_out,
        "since": behind.since.isoformat(),
        "last_seen_at": behind.last_seen_at.isoformat(),
    }


def _tell(work: _Erasure, pending: int, owner: str | None, *, waited: bool) -> None:
    for name in work.erased:
        click.echo(printable(name))
    others = len(work.shared.intersection(work.erased))
    whose = "" if owner is None else ", and all records of the owner"
    whose += f"; of {counted(others, 'other conversation')}, what the person wrote" if others else ""
    note(f"{counted(len(work.erased) - others, 'conversation')} erased{whose}")
    if waited and not pending and not work.store_rows and not work.unerased:
        note("the history store holds none of the content any more")
    elif not waited:
        note("the relay delivers the erasure (`letopis relay --once` does it now)")
    for held in work.held:
        note(f"not erased: {printable(held)}")
    if work.untold:
        note(f"other outboxes are not told, and keep what they hold of it; run this again later: {work.untold}")
    for behind in work.unacknowledged:
        which = f"outbox {printable(behind.name)} ({short_id(behind.origin_id)})"
        note(f"{which} has erasures to carry out: it does so before it delivers anything more")
    if waited and work.number is not None and not work.unacknowledged:
        note("every outbox has carried it out")
