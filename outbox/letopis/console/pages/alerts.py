"""Send a test alert to the operators' channels."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response

from letopis.console.pages.answers import action, problem
from letopis.console.visit import Fields, Visit
from letopis.outbox.alerting.alert_message import trial_alert
from letopis.outbox.alerting.channels import Alert, Channel, open_channels
from letopis.outbox.concurrency.callbacks import call_with_timeout
from letopis.store.errors import ConfigurationError
from letopis.store.model.identifiers import uuid7

TIMEOUT_SECONDS: Final = 15.0


@action
async def send_test(visit: Visit, _fields: Fields) -> Response:
    """Send a harmless alert to each channel, as ``letopis alerts test`` does, and record the outcome."""
    _, name = visit.language.gettext, visit.state.name
    try:
        # In a thread: the settings are read from files, and importing Apprise takes long.
        channels, language = await asyncio.to_thread(_open, visit)
    except ConfigurationError as error:
        return problem(visit, 409, _("The alert channels are not configured correctly."), detail=str(error))
    if not channels:
        text = _("No alert channel is configured where this console runs: set LETOPIS_ALERTS, or channels in [alerts].")
        return problem(visit, 409, text)
    title, body = trial_alert(name, language)
    alert = Alert(key=f"test/{uuid7()}", title=title, text=body, facts={"kind": "test", "outbox": name})
    sending = (call_with_timeout(channel.send, alert, seconds=TIMEOUT_SECONDS) for channel in channels)
    failures = "; ".join(
        f"{channel.name}: {outcome.error or 'no answer in time'}"
        for channel, outcome in zip(channels, await asyncio.gather(*sending), strict=True)
        if not outcome.done
    )
    await visit.act(lambda admin: admin.record("test_alert", outcome=failures or "done", conversations=0))
    if failures:
        return problem(visit, 502, _("The test alert was not taken by every channel."), detail=failures)
    return visit.see("stuck", done="test_alert", count=len(channels))


def _open(visit: Visit) -> tuple[tuple[Channel, ...], str | None]:
    """Return the channels and their language: as configured, or those of the history."""
    if visit.state.alerts is not None:
        settings = visit.state.alerts()
        return open_channels(settings.channels, private=settings.private), settings.language
    options = visit.state.insight.options
    opened = open_channels(channel for channel in options.channels if isinstance(channel, str))
    return (*opened, *(channel for channel in options.channels if not isinstance(channel, str))), options.locale
