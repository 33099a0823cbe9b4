"""``letopis doctor``, ``healthcheck`` and ``alerts``: check an installation, its relay, and the operators' channels."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.ops.cli.interface.command import VerbGroup
from letopis.ops.cli.interface.exit_codes import CommandExit, Exit, one_line
from letopis.ops.cli.interface.options import given_outboxes, settings, verb, with_options
from letopis.ops.cli.interface.output import emit, printable, remark, supports_style
from letopis.ops.cli.relay import LISTEN
from letopis.ops.cli.status import status_of_file

if TYPE_CHECKING:
    from letopis.ops.daemon.http import ListenAddress
    from letopis.ops.doctor.finding import Finding
    from letopis.outbox.alerting.channels import Channel

TIMEOUT_SECONDS: Final = 3.0


@verb(
    "letopis healthcheck",
    "letopis healthcheck --listen 9464",
    "letopis healthcheck --outbox a.outbox.db --outbox b.outbox.db",
)
@LISTEN
def healthcheck(listen: str | None) -> None:
    """Exit 0 if the relay is healthy, 1 if not, with the reason on stderr.

    With --listen it asks the daemon over HTTP (/healthz/ready), otherwise it reads the outbox files. An unavailable
    history store does not count: the outbox is there for that.
    """
    from letopis.store.errors import LetopisError

    # 0 and 1 are the only codes that a container's health check may end with.
    try:
        config = settings(several=True)
        if address := listen or config.daemon.get("listen"):
            from letopis.ops.daemon.http import parse_address

            reason = _ask(parse_address(str(address)))
        else:
            reason = _check_files(given_outboxes() or (str(config.outbox),))
    except LetopisError as error:
        reason = str(error)
    if reason is not None:
        raise CommandExit(Exit.FAILED, reason)


def _ask(address: ListenAddress) -> str | None:
    """Ask the daemon; return why it is unhealthy, or ``None``."""
    import http.client

    # A daemon that listens on all interfaces is asked on the loopback one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 # nosec B104 - compared, not bound
    connection = http.client.HTTPConnection(host, address.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {address} ({type(error).__name__})"
    finally:
        connection.close()
    return None if status == 200 else f"{address} answers {status}"


def _check_files(names: tuple[str, ...]) -> str | None:
    """Return why an outbox is not served, as its file shows, or ``None``."""
    from letopis.ops.daemon.discovery import find_outboxes, may_be_outbox

    paths = [match.path for match in find_outboxes(names) if not match.matched or may_be_outbox(match.path)]
    for path in paths:
        if not path.is_file():
            return f"there is no outbox {str(path)!r}"
        try:
            status = asyncio.run(asyncio.wait_for(asyncio.to_thread(status_of_file, path), TIMEOUT_SECONDS))
        except TimeoutError:
            return f"{path.name!r} could not be read in {TIMEOUT_SECONDS:g} s"
        if status.wrong_store:
            return f"the relay of {path.name!r} is configured with another history store"
        if not status.relay.running:
            return f"no relay runs on {path.name!r}"
        outage = status.breaker.state != "closed" or status.relay.paused_since is not None
        if status.late and status.lanes.get("ready", 0) and not outage:
            return f"the relay of {path.name!r} makes no progress: {status.verdict}"
    return None


COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red", "skip": None}


@verb("letopis doctor", """letopis doctor --json | jq '.checks[] | select(.level == "fail")'""", json=True)
def doctor() -> None:
    """Diagnose problems and suggest fixes: in the configuration, the outbox, the relay and the history store.

    One line per check. Creates and changes nothing. Exits with 1 if a check fails; a warning is not a failure.
    """
    from letopis.ops.doctor.doctor import examine, healthy
    from letopis.ops.doctor.finding import fail
    from letopis.store.errors import ConfigurationError

    try:
        config = settings()
    except ConfigurationError as error:
        findings = [fail("configuration", str(error), "correct it: all other checks depend on it")]
        outbox = None
    else:
        outbox = config.outbox.name
        findings = asyncio.run(examine(config))
    well = healthy(findings)
    checks = [
        {"check": finding.check, "level": finding.level, "said": finding.said, "hint": finding.hint or None}
        for finding in findings
    ]
    emit({"outbox": outbox, "healthy": well, "checks": checks}, text="\n".join(map(_line, findings)))
    if not well:
        raise CommandExit(Exit.FAILED)
    remark("nothing is wrong")


def _line(finding: Finding) -> str:
    level = f"{finding.level:<4}"
    if supports_style(sys.stdout):
        level = click.style(level, fg=COLOURS[finding.level], bold=finding.level == "fail")
    said = one_line(printable(finding.said))
    return f"{level}  {finding.check:<18} {said}" + (f" -> {one_line(printable(finding.hint))}" if finding.hint else "")


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
    from letopis.ops.config.settings import load_alerts
    from letopis.outbox.alerting.channels import open_channels

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
        f"{'ok  ' if result['ok'] else 'FAIL'} {printable(result['name'])}"
        + ("" if result["ok"] else f": {printable(result['error'])}")
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
