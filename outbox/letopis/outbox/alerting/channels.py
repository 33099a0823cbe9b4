"""Send alerts to operators through the services that Apprise knows."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from letopis.outbox.concurrency.callbacks import run_in_daemon_thread
from letopis.store.errors import ConfigurationError, LetopisError

T = TypeVar("T")

# What Apprise calls an address that takes JSON; its own ``https://`` recognises a few services only.
_WEBHOOKS: Final = {"https": "jsons", "http": "json"}
_PLAIN: Final = frozenset({"http", "json", "xml", "form", "apprise"})  # they post to any address without TLS
_ours: Final[ContextVar[bool]] = ContextVar("letopis_alert", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What a channel passes on.

    :ivar key: the same for every attempt at the same alert, and for no other.
    :ivar recovered: it announces the end of an incident.
    :ivar facts: JSON values for channels of your own: counts, ids, times and fault classes, never a payload.
    """

    key: str
    title: str
    text: str
    recovered: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


class AlertFailed(LetopisError):
    """A channel did not take an alert; the message names the channel and no secret."""

    def __init__(self, channel: str, code: str) -> None:
        super().__init__(f"{channel} did not take the alert [{code}]")
        self.channel, self.code = channel, code


class Channel(Protocol):
    """A way to reach operators."""

    @property
    def name(self) -> str:
        """The name to show; no secret."""
        ...

    @property
    def recipient(self) -> str:
        """The name in the outbox file: the same for the same address, in every process; no secret."""
        ...

    async def send(self, alert: Alert) -> None:
        """Pass an alert on.

        :raises LetopisError: it was not taken.
        """


class AppriseChannel:
    """Passes alerts to one of the services that Apprise knows (extra ``letopis[alerts]``).

    ``https://`` is a webhook: the alert is posted as JSON, as by Apprise's ``jsons://``. Redirects are not followed.
    """

    def __init__(self, url: str, *, private: bool = False) -> None:
        scheme = url.partition("://")[0].lower() if "://" in url else ""
        if scheme in _PLAIN and not private:
            raise ConfigurationError(
                f"an alert address with {scheme}:// is posted to without TLS: use https://, or allow it with private"
            )
        try:
            import apprise
        except ImportError as error:
            raise ConfigurationError("alerts to operators need Apprise: pip install 'letopis[alerts]'") from error
        for name in ("apprise", "urllib3.connectionpool", "urllib3.util.retry"):
            logging.getLogger(name).addFilter(_not_ours)  # idempotent
        # A redirect would send the alert, and perhaps a token, to wherever the answer says.
        self._apprise = apprise.Apprise(asset=apprise.AppriseAsset(http_redirects=False))
        self._types = (apprise.NotifyType.WARNING, apprise.NotifyType.SUCCESS)
        self._format = apprise.NotifyFormat.TEXT
        address = _webhook_for_apprise(url) if scheme in _WEBHOOKS else url
        with warnings.catch_warnings():
            # It imports all its services now, and some of these import what newer releases of Python lack.
            warnings.simplefilter("ignore", DeprecationWarning)
            known = _silently(lambda: self._apprise.add(address))
        if not known or len(self._apprise) != 1:
            raise ConfigurationError(f"Apprise does not know this alert address ({scheme or 'no scheme'}://...)")
        for service in self._apprise:
            service.redirects = False  # also where the address says redirect=yes
        self.name = str(self._apprise[0].service_name)
        if scheme in _WEBHOOKS:
            self.name = f"webhook {urlsplit(url).hostname}"
        # Enough to distinguish channels, too little to guess an address with a secret in it.
        self.recipient = f"channel:{hashlib.sha256(url.encode()).hexdigest()[:12]}"

    async def send(self, alert: Alert) -> None:
        """Have Apprise send an alert once; retrying is the caller's."""

        def notify() -> Any:
            return self._apprise.notify(
                title=alert.title,
                body=alert.text,
                notify_type=self._types[alert.recovered],
                body_format=self._format,
                interpret_escapes=False,
            )

        if not await run_in_daemon_thread(_silently, notify, name="letopis-alert"):
            raise AlertFailed(self.name, "not_delivered")


def open_channels(urls: Iterable[str], *, private: bool = False) -> tuple[Channel, ...]:
    """Return the channels that addresses name, each once; see `AppriseChannel`.

    :param private: allow addresses that are posted to without TLS.
    :raises ConfigurationError: an address that Apprise does not know, or Apprise is not installed.
    """
    return tuple(AppriseChannel(url, private=private) for url in dict.fromkeys(urls))


def _webhook_for_apprise(url: str) -> str:
    """Return a web address as Apprise takes it: its query is the receiver's, not settings of Apprise's."""
    usable: str | None = None
    with suppress(ValueError):
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True)
        query = urlencode([(f"-{key}", value) for key, value in given], quote_via=quote)
        if parts.hostname and parts.port != 0:
            usable = parts._replace(scheme=_WEBHOOKS[parts.scheme], query=query, fragment="").geturl()
    if usable is None:  # not chained: that would quote the address
        raise ConfigurationError("this https:// alert address cannot be read: check its host and port")
    return usable


def _silently(fn: Callable[[], T]) -> T:
    """Call ``fn`` with the log lines of others dropped, also in the threads that Apprise hands its context on to."""
    token = _ours.set(True)
    try:
        return fn()
    finally:
        _ours.reset(token)


def _not_ours(_: logging.LogRecord) -> bool:
    """Drop what other libraries log while they send an alert of ours: they quote addresses, which hold tokens."""
    return not _ours.get()
