"""``letopis db rebuild`` and ``index``: what is made of the log, made anew or brought up to it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, note, print_json

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from letopis.store.history import ConversationStore
    from letopis.store.rebuild import Rebuilt

EVERY: Final = 2.0
"""Seconds between two words of how far it is."""
AT_ONCE: Final = 2_000
"""Events that are taken into the index between two looks at the clock."""
SHOWN: Final = 100
"""Conversations that differ and are named; the others are counted."""


@click.command()
@click.option("--check", is_flag=True, help="Write nothing: look at all of them, and exit with 1 if one differs.")
@click.option("--all", "every", is_flag=True, help="Rebuild every conversation, not only those of older rules.")
@click.option("--conversation", metavar="ID", help="Only this conversation.")
@JSON
@with_options
def rebuild(check: bool, every: bool, conversation: str | None, as_json: bool) -> None:
    """Make the rows of conversations and messages anew from the log, while bots and relays go on.

    By default those whose rows an older release's rules made, and those whose row is missing. What was cut off is gone
    on with by running it again.
    """
    import anyio

    count, differing = anyio.run(_run, check, every, conversation)
    if as_json:
        print_json(
            {
                "conversations": count["conversations"],
                "events": count["events"],
                "differing": count["differing"],
                "written": count["written"],
                "differences": [
                    {
                        "conversation_id": one.conversation_id,
                        "count": one.difference_count,
                        "names": list(one.differences),
                    }
                    for one in differing
                ],
            }
        )
    else:
        for one in differing:
            more = one.difference_count - len(one.differences)
            names = ", ".join(one.differences) + (f" and {more} more" if more else "")
            click.echo(f"{clean(one.conversation_id)}: {names}")
    if conversation is not None and not count["conversations"]:
        raise Ended(Exit.NOTHING, f"there is no conversation {conversation!r}, or a newer release made its rows")
    left = count["differing"] - count["written"]
    what = "differ from the log" if check else "cannot be mended from the log: restore the database"
    if left:
        raise Ended(Exit.FAILED, f"{_said(count, check=check)}; {left} {what}")
    note(_said(count, check=check))


@click.command()
@JSON
@with_options
def index(as_json: bool) -> None:
    """Bring the search index up to the log, while bots and relays go on.

    Searching does it too, a stretch at a time: this is for a large history that has none yet. What was cut off is gone
    on with by running it again.
    """
    import anyio

    done = anyio.run(_index)
    if as_json:
        print_json({"events": done})
    else:
        note(f"{done} events taken into the search index")


async def _index() -> int:
    done, told = 0, time.monotonic()
    async with _store() as store:
        while taken := await store.catch_up_search(AT_ONCE):
            done += taken
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                note(f"{done} events taken into the search index ...")
    return done


def _store() -> AbstractAsyncContextManager[ConversationStore]:
    from letopis.outbox.cli.places import store_of
    from letopis.outbox.history import check_apart
    from letopis.store.history import ConversationStore
    from letopis.store.urls import normalise_url

    url = normalise_url(store_of(settings()))
    check_apart(Path(settings().outbox), url)
    return ConversationStore.open(url, migrate=False, pool_size=2)


async def _run(check: bool, every: bool, conversation: str | None) -> tuple[Counter[str], list[Rebuilt]]:
    from letopis.store.rebuild import Rebuilt

    count, differing, told = Counter[str](), list[Rebuilt](), time.monotonic()
    async with _store() as store:
        async for one in store.rebuild(check=check, every=every, conversation=conversation):
            count.update(conversations=1, events=one.events, written=one.written, differing=bool(one.differences))
            if one.differences and len(differing) < SHOWN:
                differing.append(one)
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                note(f"{_said(count, check=check)} ...")
    return count, differing


def _said(count: Counter[str], *, check: bool) -> str:
    done = "looked at" if check else "rebuilt"
    return f"{count['conversations']} conversations of {count['events']} events {done}, {count['written']} changed"
