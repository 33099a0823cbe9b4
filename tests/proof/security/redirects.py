"""Redirects: an alert goes to the address that the operator wrote, and to no other that an answer names."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from letopis.outbox.alerting.channels import Alert, AlertFailed, open_channels
from tests.support.webhook import serve

STATUSES: Final = (301, 302, 303, 307, 308)
_ALERT: Final = Alert(key="proof", title="Letopis", text="a proof")


def redirected() -> tuple[int, list[str]]:
    """Answer alerts with every redirect; return how many were sent, and which led elsewhere."""
    tried, wrong = 0, []
    with serve() as site:
        for status in STATUSES:
            # An address cannot switch it on either.
            for address in (f"http://{site.url}/hook", f"json://{site.url}/hook?redirect=yes"):
                site.status, before = status, len(site.asked)
                tried += 1
                (channel,) = open_channels([address], private=True)
                with suppress(AlertFailed):
                    asyncio.run(channel.send(_ALERT))
                if site.paths[before:] != ["/hook"]:
                    wrong.append(f"{status}: {site.paths[before:]} were asked")
    return tried, wrong


def followed() -> list[str]:
    """The control: Apprise with its defaults goes where the answer says; return the other paths that were requested."""
    import apprise

    with serve() as site:
        site.status = 307
        channel = apprise.Apprise()
        channel.add(f"json://{site.url}/hook")
        channel.notify(title=_ALERT.title, body=_ALERT.text)
        return [path for path in site.paths if path != "/hook"]
