"""Check what a history was given, and whether histories on one file were given the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL

from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.language import Style
from letopis.outbox.alerting.notifications import Callback
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.file.inspection import outbox_path
from letopis.outbox.file.limits import Bounds
from letopis.outbox.history.store_location import check_apart, store_beside
from letopis.outbox.history.unconfirmed import OnUnconfirmed
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.urls import check_path, normalise_url
from letopis.store.errors import ConfigurationError
from letopis.store.model.codec import DEFAULT_LIMITS, Limits
from letopis.store.model.events import utc_now
from letopis.store.model.upcasters import NO_UPCASTERS, Upcasters
from letopis.store.model.validation import check_number

_ALWAYS_SAME: Final = frozenset({"relay", "watch"})
"""Options of which the default is a wish too: a history that is to deliver must not join one that does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a history was given, beside the two places; the defaults are what it was not given."""

    relay: bool = True
    watch: bool = True
    create: bool = True
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    retention: Retention = field(default_factory=Retention)
    limits: Limits = DEFAULT_LIMITS
    bounds: Bounds = field(default_factory=Bounds)
    upcasters: Upcasters = NO_UPCASTERS
    on_stuck: Callback | None = None
    on_recovered: Callback | None = None
    on_unconfirmed: OnUnconfirmed | None = None
    channels: Iterable[str | Channel] = ()
    rules: Rules = field(default_factory=Rules)
    locale: str | None = None
    style: Style = "plain"
    read_timeout: float = 3.0
    own_thread: bool = False
    now: Callable[[], datetime] = utc_now

    def __post_init__(self) -> None:
        _check_callback("on_stuck", self.on_stuck)
        _check_callback("on_recovered", self.on_recovered)
        _check_callback("on_unconfirmed", self.on_unconfirmed, takes="a tuple of Unconfirmed")
        _check_callback("now", self.now, takes="nothing and returns the time")
        for name, kind in (
            ("policy", RetryPolicy),
            ("retention", Retention),
            ("limits", Limits),
            ("upcasters", Upcasters),
            ("rules", Rules),
        ):
            option = getattr(self, name)
            if not isinstance(option, kind):
                raise ConfigurationError(f"{name} must be {kind.__name__}(...), not {type(option).__name__}")
        check_number(self.read_timeout, "read_timeout")
        if isinstance(self.channels, str) or not isinstance(self.channels, Iterable):
            raise ConfigurationError(f"channels must be a list of addresses, not {type(self.channels).__name__}")
        object.__setattr__(self, "channels", tuple(self.channels))  # read again by each opening


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """What to open: the outbox, the history store, and how.

    :ivar path: absolute.
    :ivar store: the caller's own store, or the address of one; ``None`` if none was given.
    """

    path: Path
    store: URL | ConversationStore | None
    options: Options

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        store: str | URL | os.PathLike[str] | ConversationStore | None,
        options: Options,
    ) -> HistorySettings:
        """Check what a history was given, without any I/O.

        :raises ConfigurationError: the path or the URL is wrong, or they are the same file.
        """
        where = outbox_path(check_path(path, "the outbox"))
        if store is not None and not isinstance(store, ConversationStore):
            store = normalise_url(store)
        settings = cls(path=where, store=store, options=options)
        check_apart(where, settings.url)
        return settings

    @property
    def url(self) -> URL:
        """The address of the history store, by default a file beside the outbox."""
        if self.store is None:
            return normalise_url(store_beside(self.path))
        return self.store.url if isinstance(self.store, ConversationStore) else self.store

    def check_same(self, other: HistorySettings) -> None:
        """Check that another history may share what was opened by these settings.

        An option that the other one was not given is taken from these.

        :raises ConfigurationError: it was given something else.
        """
        differ = [
            one.name
            for one in fields(Options)
            if one.name != "create"
            and (given := getattr(other.options, one.name)) != getattr(self.options, one.name)
            and (one.name in _ALWAYS_SAME or given != getattr(_DEFAULTS, one.name))
        ]
        if isinstance(other.store, ConversationStore):
            same_store = other.store is self.store
        else:
            same_store = other.store is None or other.store == self.url
        if not same_store:
            differ.insert(0, "store")
        if differ:
            raise ConfigurationError(
                f"{other.path.name!r} is open in this process with another value of {', '.join(differ)}: histories on"
                " one file share one outbox, so give them the same options"
            )


def _check_callback(name: str, callback: object, *, takes: str = "an Incident") -> None:
    # Otherwise it would show when the first user is to be notified.
    if callback is not None and not callable(callback):
        raise ConfigurationError(f"{name} must be a function that takes {takes}, not {type(callback).__name__}")


_DEFAULTS: Final = Options()
