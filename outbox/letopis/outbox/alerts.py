"""Tell operators: the channels that an alert goes out by, a webhook of one's own or whatever Apprise knows."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from letopis.outbox.calls import in_thread
from letopis.outbox.webhook import WebhookFailed, parse_webhook, post
from letopis.store.errors import ConfigurationError, LetopisError

T = TypeVar("T")

# What posts to any address at all: for these the guarded webhook is there.
_ANY_ADDRESS: Final = frozenset({"json", "jsons", "xml", "xmls", "form", "forms", "apprise", "apprises"})
_THREAD: Final = "letopis-alert"
_ours: Final[ContextVar[bool]] = ContextVar("letopis_alert", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What a channel passes on.

    :ivar key: the same for every attempt at the same alert, and for no other.
    :ivar recovered: it is the good news.
    :ivar facts: JSON values for programs; counts, ids, times and fault classes, never a payload.
    """

    key: str
    title: str
    text: str
    recovered: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


class AlertFailed(LetopisError):
    """A channel did not take an alert; the message names the channel and no secret.

    :ivar unsure: it may have arrived all the same.
    """

    def __init__(self, channel: str, code: str, *, unsure: bool = False) -> None:
        super().__init__(f"{channel} did not take the alert [{code}]")
        self.channel = channel
        self.code = code
        self.unsure = unsure


class Channel(Protocol):
    """A way to operators."""

    @property
    def name(self) -> str:
        """What people call it; no secret."""
        ...

    @property
    def recipient(self) -> str:
        """What it is called in the outbox file: the same for the same address, in every process; no secret."""
        ...

    async def send(self, alert: Alert) -> None:
        """Pass an alert on.

        :raises LetopisError: it was not taken.
        """


class WebhookChannel:
    """Posts alerts as JSON to a ``https`` address: ``{"key", "title", "text", "recovered", ...facts}``."""

    def __init__(self, url: str, *, private: bool = False, seconds: float = 10.0) -> None:
        self._webhook = parse_webhook(url, private=private)
        self._seconds = seconds
        self.name = f"webhook {self._webhook.host}"
        self.recipient = _recipient(url)

    async def send(self, alert: Alert) -> None:
        """Post an alert; 200 to 299 means taken.

        :raises AlertFailed: anything else came back, or nothing.
        :raises WebhookRefused: the address is not one that may be posted to.
        """
        value = {
            **alert.facts,
            "key": alert.key,
            "title": alert.title,
            "text": alert.text,
            "recovered": alert.recovered,
        }
        headers = {"Content-Type": "application/json", "User-Agent": "letopis", "Idempotency-Key": alert.key}
        body = json.dumps(value).encode()
        try:
            await in_thread(lambda: post(self._webhook, body, headers=headers, seconds=self._seconds), name=_THREAD)
        except WebhookFailed as error:
            raise AlertFailed(self.name, error.code, unsure=error.unsure) from error


class AppriseChannel:
    """Passes alerts to one of the services that Apprise knows (extra ``letopis[alerts]``)."""

    def __init__(self, url: str, *, private: bool = False) -> None:
        try:
            import apprise
        except ImportError as error:
            raise ConfigurationError(
                "this alert address is one for Apprise: pip install 'letopis[alerts]', or give a https:// address"
            ) from error
        scheme = urlsplit(url).scheme.lower() if "://" in url else ""
        if scheme in _ANY_ADDRESS and not private:
            raise ConfigurationError(
                f"{scheme}:// posts to any address unguarded: use https://, or allow private addresses explicitly"
            )
        _keep_quiet()
        # A redirect would lead a post with a token in it to wherever the answer says.
        asset = apprise.AppriseAsset(http_redirects=False)
        self._apprise = apprise.Apprise(asset=asset)
        self._kinds = (apprise.NotifyType.WARNING, apprise.NotifyType.SUCCESS)
        self._format = apprise.NotifyFormat.TEXT
        with warnings.catch_warnings():
            # It imports all its services now, and some of these import what newer releases of Python are without.
            warnings.simplefilter("ignore", DeprecationWarning)
            known = _silently(lambda: self._apprise.add(url))
        if not known or len(self._apprise) != 1:
            raise ConfigurationError(f"Apprise does not know this alert address ({scheme or 'no scheme'}://...)")
        self.name = str(self._apprise[0].service_name)
        self.recipient = _recipient(url)

    async def send(self, alert: Alert) -> None:
        """Have Apprise send an alert, once: the tries are ours.

        :raises AlertFailed: the service did not take it.
        """

        def notify() -> Any:
            return self._apprise.notify(
                title=alert.title,
                body=alert.text,
                notify_type=self._kinds[alert.recovered],
                body_format=self._format,
                interpret_escapes=False,
            )

        if not await in_thread(_silently, notify, name=_THREAD):
            raise AlertFailed(self.name, "not_delivered")


def open_channels(urls: Iterable[str], *, private: bool = False) -> tuple[Channel, ...]:
    """Return the channels that addresses name: ``https://`` is a webhook, anything else one for Apprise.

    :param private: allow plain ``http`` and machines of our own network.
    :raises ConfigurationError: an address that cannot be one, or Apprise is needed and not installed.
    """
    channels: dict[str, Channel] = {}
    for url in urls:
        web = url.lower().startswith(("https://", "http://"))
        channel: Channel = WebhookChannel(url, private=private) if web else AppriseChannel(url, private=private)
        channels[channel.recipient] = channel
    return tuple(channels.values())


def _recipient(url: str) -> str:
    # Enough to tell channels apart, too little to guess an address with a secret in it.
    return f"channel:{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _silently(fn: Callable[[], T]) -> T:
    """Call ``fn`` with the log lines of others dropped, also in the threads that Apprise hands its context on to."""
    token = _ours.set(True)
    try:
        return fn()
    finally:
        _ours.reset(token)


class _NotOurs(logging.Filter):
    """Drops what others log while they send an alert of ours: their lines quote addresses, and these hold tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _ours.get()


_not_ours: Final = _NotOurs()


def _keep_quiet() -> None:
    for name in ("apprise", "urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_not_ours)  # adding the same one again does nothing
