"""``letopis alerts``: the ways to operators, tried out before they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, print_json

if TYPE_CHECKING:
    from letopis.outbox.alerts import Channel


@click.group()
@with_options
def alerts() -> None:
    """Try the channels by which operators are told of what stays stuck."""


@alerts.command()
@click.option(
    "--channel",
    "channels",
    metavar="URL",
    multiple=True,
    help="A channel to try instead of the configured ones (LETOPIS_ALERTS, LETOPIS_ALERTS_FILE or [alerts] in "
    "letopis.toml); may be repeated. https:// is a webhook, anything else is for Apprise.",
)
@click.option(
    "--private/--public",
    default=None,
    help="Whether plain http and machines of one's own network may be posted to (LETOPIS_ALERTS_PRIVATE).",
)
@JSON
@with_options
def test(channels: tuple[str, ...], private: bool | None, as_json: bool) -> None:
    """Send one harmless alert to each channel, and say which took it.

    Exits with 0 if all did, with 1 if one did not, with 78 if there is none.
    """
    from letopis.outbox.alert_settings import load_alerts
    from letopis.outbox.alerts import open_channels

    found = settings()
    wanted = load_alerts(
        found.alerts, channels=channels, private=private, folder=found.file.parent if found.file else None
    )
    opened = open_channels(wanted.channels, private=wanted.private)
    if not opened:
        raise Ended(
            Exit.CONFIGURATION, "there is no alert channel: set LETOPIS_ALERTS, or channels in [alerts] of letopis.toml"
        )
    results = asyncio.run(_try_all(opened, found.outbox.name, wanted.language))
    if as_json:
        print_json({"channels": results})
    else:
        for result in results:
            click.echo(f"{'ok  ' if result['ok'] else 'FAIL'} {clean(result['name'])}{_because(result['error'])}")
    if not all(result["ok"] for result in results):
        raise Ended(Exit.FAILED)


async def _try_all(channels: Sequence[Channel], outbox: str, language: str) -> list[dict[str, Any]]:
    from letopis.outbox.alerts import Alert
    from letopis.outbox.calls import attempt
    from letopis.outbox.texts import trial_alert
    from letopis.store.identifiers import uuid7

    title, text = trial_alert(outbox, language)
    results = []
    for channel in channels:
        alert = Alert(key=f"test/{uuid7()}", title=title, text=text, facts={"kind": "test", "outbox": outbox})
        outcome = await attempt(channel.send, alert, seconds=20.0)
        error = None if outcome.done else outcome.error or "no answer in time"
        results.append({"name": channel.name, "ok": outcome.done is True, "error": error})
    return results


def _because(error: str | None) -> str:
    return "" if error is None else f": {clean(error)}"
