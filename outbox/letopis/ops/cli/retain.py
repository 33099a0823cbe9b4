"""``letopis history retain`` and ``tag``: take content away by the rules of retention, which go by tags."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import existing_outbox
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import TIMEOUT, counted, emit, note, printable, table
from letopis.ops.cli.interface.progress import progress
from letopis.ops.cli.interface.selection import YES, confirm
from letopis.store.errors import ConfigurationError

if TYPE_CHECKING:
    from letopis.ops.config.settings import Settings
    from letopis.outbox.history.history import History
    from letopis.outbox.relay.content_retention import Pruned
    from letopis.store.maintenance.retention import DueContent
    from letopis.store.rules.retention import ContentRetention


@verb(
    "letopis history retain --dry-run",
    "letopis history retain --dry-run --json | jq '.conversations[].messages'",
    "letopis history retain --yes --wait",
    json=True,
)
@click.option("--dry-run", is_flag=True, help="Print what would leave, and change nothing.")
@click.option("--wait", is_flag=True, help="Deliver it, and exit when the history store holds none of the content.")
@TIMEOUT
@YES
def retain(dry_run: bool, wait: bool, timeout: float | None, yes: bool) -> None:
    """Take content out of the history that the rules in [retention.content] keep no longer, now.

    The relay does the same once an hour. Exits with 3 if nothing is due.
    """
    from letopis.outbox.operations.pending_events import picked

    config = settings()
    if config.retention.content is None:
        raise click.UsageError("There are no rules: write a table [retention.content] into letopis.toml.")
    due, threads, pending = asyncio.run(_retain(config, dry_run=dry_run, wait=wait, longest=timeout, yes=yes))
    rules = dict[str, dict[str, int]]()
    for found in due:
        rule = rules.setdefault(found.rule, {"conversations": 0, "messages": 0})
        rule["conversations"] += 1
        rule["messages"] += found.messages
    about = ("conversation_id", "owner_id", "rule", "upto", "messages", "oldest_kept")
    emit(
        {
            "dry_run": dry_run,
            "rules": rules,
            "conversations": [picked(found, *about) for found in due],
            "checkpoints": [thread._asdict() for thread in threads],
            "pending": pending,
        },
        text=_text(due, threads),
    )
    if not (due or threads):
        raise CommandExit(Exit.NOTHING, "nothing is due")
    leaves = "would leave" if dry_run else "leaves"
    for name, rule in rules.items():
        what = f"{counted(rule['messages'], 'message')} of {counted(rule['conversations'], 'conversation')}"
        note(f"by the rule {printable(name)!r} the content of {what} {leaves}")
    if threads:
        count = sum(thread.checkpoints for thread in threads)
        note(f"{'would delete' if dry_run else 'deleted'} {counted(count, 'checkpoint')}")
    if wait and pending:
        raise CommandExit(Exit.LATER, f"not complete yet: {pending} events are pending; the relay continues")


def _text(due: list[DueContent], threads: list[Pruned]) -> str:
    rows = [
        (
            printable(found.conversation_id),
            printable(found.rule),
            str(found.messages),
            f"{found.oldest_kept:%Y-%m-%d %H:%M}Z" if found.oldest_kept else "none",
        )
        for found in due
    ]
    found = [table(("CONVERSATION", "RULE", "MESSAGES", "OLDEST KEPT"), rows)] if rows else []
    if threads:
        lines = [(printable(one.conversation_id), printable(one.rule), str(one.checkpoints)) for one in threads]
        found.append(table(("THREAD OF", "RULE", "CHECKPOINTS"), lines))
    return "\n\n".join(found)


async def _retain(
    config: Settings, *, dry_run: bool, wait: bool, longest: float | None, yes: bool
) -> tuple[list[DueContent], list[Pruned], int]:
    """Return what is due, and how many events are pending once it is appended."""
    import anyio

    from letopis.ops.cli.interface.progress import deliver
    from letopis.outbox.history.history import History
    from letopis.outbox.relay.content_retention import append_trims

    path = existing_outbox(config)
    with progress("looking", unit="conversations") as report:
        async with History(path, store=config.store, relay=wait, create=False, policy=config.policy) as history:
            due, threads = (
                await find_due(history, config.retention.content),
                await _prune(history, config, dry_run=True),
            )
            if not (due or threads) or dry_run:
                return due, threads, (await history.status()).pending
            checkpoints = sum(thread.checkpoints for thread in threads)
            also = f", and delete {counted(checkpoints, 'checkpoint')}," if threads else ""
            confirm(f"Take content out of {counted(len(due), 'conversation')}{also} for good?", yes=yes)
            await append_trims(history.outbox, due)
            if threads:
                threads = await _prune(history, config, dry_run=False)
            if wait:
                await deliver(history, report, longest=longest)
                with anyio.move_on_after(longest):
                    while await history.store.run_pending_tasks():
                        pass
            return due, threads, (await history.status()).pending


async def find_due(history: History, retention: ContentRetention | None) -> list[DueContent]:
    """Return what is due of each conversation; what was looked at is looked at again by the relay."""
    from letopis.outbox.relay.content_retention import due_content

    if retention is None:
        return []
    runtime = history.store.runtime
    due, origin_id = dict[str, Any](), history.outbox.origin.origin_id
    finder = (await runtime.prepared()).retention
    places = await runtime.connected(partial(finder.places, retention=retention))
    now: int | None = None
    look = partial(due_content, history.store, retention, origin_id=origin_id, describe=True)
    while (step := await look(places, now=now)).more:
        places, now = places | step.moved, step.now
        for found in step.due:
            if found.conversation_id not in due or due[found.conversation_id].upto < found.upto:
                due[found.conversation_id] = found
    # The store does not know the tags that are pending here.
    for name, found in list(due.items()):
        conversation = await history.chat(name).conversation()
        rule = None if conversation is None else retention.rule_for(conversation.owner_id, conversation.tags)
        if rule is None or rule.name != found.rule:
            del due[name]
    return list(due.values())


async def _prune(history: History, config: Settings, *, dry_run: bool) -> list[Pruned]:
    """Return the namespaces with due checkpoints, and how many each has or had."""
    from letopis.outbox.relay.content_retention import prune_checkpoints

    retention = config.retention.content
    if retention is None or not retention.limits_checkpoints:
        return []
    pruning = prune_checkpoints(history.outbox, history.store, retention, dry_run=dry_run)
    try:
        return [pruned async for pruned in pruning if pruned.checkpoints]
    except ConfigurationError as error:
        note(str(error))  # conversations are not kept by it
    return []


@verb("letopis history tag telegram:4711 --add pinned", "letopis history tag telegram:4711 --add vip --remove trial")
@click.argument("conversation")
@click.option("--add", metavar="TAG", multiple=True, help="Add a tag; `pinned` keeps the content from retention.")
@click.option("--remove", metavar="TAG", multiple=True, help="Remove a tag.")
def tag(conversation: str, add: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Add tags to a conversation, or remove them. Rules of retention are given by tag."""
    if not add and not remove:
        raise click.UsageError("Give a tag with --add or --remove.")

    async def write() -> tuple[str, ...] | None:
        from letopis.outbox.history.history import History

        config = settings()
        async with History(existing_outbox(config), store=config.store, relay=False, create=False) as history:
            chat = history.chat(conversation)
            if await chat.conversation() is None:
                return None
            await chat.tag(*add, remove=remove)
            changed = await chat.conversation()
            return () if changed is None else changed.tags

    tags = asyncio.run(write())
    if tags is None:
        raise CommandExit(Exit.NOTHING, f"there is no conversation {conversation!r}")
    note(f"the conversation has {'the tags ' + ', '.join(map(printable, tags)) if tags else 'no tags'}")
