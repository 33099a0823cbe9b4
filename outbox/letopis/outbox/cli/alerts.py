"""``letopis alerts``: test the operators' channels before they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from letopis.outbox.cli.interface.command import VerbGroup
from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit
from letopis.outbox.cli.interface.options import settings, verb, with_options
from letopis.outbox.cli.interface.output import emit, printable

if TYPE_CHECKING:
    from letopis.outbox.alerting.channels import Channel


@click.group(cls=VerbGroup)
@with_options
def alerts() -> None:
    """Send a test alert."""


@verb("letopis alerts test", "letopis alerts test --channel https://example.org/hook --json", group=alerts, json=True)
@click.option(
    "--channel",
    "channels",
    metavar="URL",
    multiple=True,
    help="A channel to try instead of the configured ones (LETOPIS_ALERTS, LETOPIS_ALERTS_FILE or [alerts] in "
    "letopis.toml); may be repeated. Any address that Apprise knows, or https:// for a webhook.",
)
@click.option(
    "--private/--public", default=None, help="Allow addresses that are posted to without TLS (LETOPIS_ALERTS_PRIVATE)."
)
def test(channels: tuple[str, ...], private: bool | None) -> None:
    """Send a harmless alert to each channel, and print which took it.

    Exits with 0 if all did, with 1 if one did not, with 78 if there is none.
    """
    from letopis.outbox.alerting.channels import open_channels
    from letopis.outbox.config.settings import load_alerts

    config = settings()
    wanted = load_alerts(
        config.alerts, channels=channels, private=private, folder=config.file.parent if config.file else None
    )
    opened = open_channels(wanted.channels, private=wanted.private)
    if not opened:
        raise CommandExit(
            Exit.CONFIGURATION, "there is no alert channel: set LETOPIS_ALERTS, or channels in [alerts] of letopis.toml"
        )
    results = asyncio.run(_try_all(opened, config.outbox.name, wanted.language))
    lines = [
        f"{'ok  ' if result['ok'] else 'FAIL'} {printable(result['name'])}{_because(result['error'])}"
        for result in results
    ]
    emit({"channels": results}, text="\n".join(lines))
    if not all(result["ok"] for result in results):
        raise CommandExit(Exit.FAILED)


async def _try_all(channels: Sequence[Channel], outbox: str, language: str) -> list[dict[str, Any]]:
    from letopis.outbox.alerting.alert_message import trial_alert
    from letopis.outbox.alerting.channels import Alert
    from letopis.outbox.concurrency.callbacks import call_with_timeout
    from letopis.store.model.identifiers import uuid7

    title, text = trial_alert(outbox, language)
    results = []
    for channel in channels:
        alert = Alert(key=f"test/{uuid7()}", title=title, text=text, facts={"kind": "test", "outbox": outbox})
        outcome = await call_with_timeout(channel.send, alert, seconds=20.0)
        error = None if outcome.done else outcome.error or "no answer in time"
        results.append({"name": channel.name, "ok": outcome.done is True, "error": error})
    return results


def _because(error: str | None) -> str:
    return "" if error is None else f": {printable(error)}"
