"""Name what a history and an append are given, and check that histories on one file were given the same."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypedDict, TypeVar

from letopis.outbox.event_log.append_encoding import After
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.file.limits import Bounds
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.errors import ConfigurationError, InvalidInput
from letopis.store.model.codec import DEFAULT_LIMITS, Limits
from letopis.store.model.events import NO_UPCASTERS, Upcasters, utc_now
from letopis.store.model.identifiers import Owner, check_number, owner_id
from letopis.store.model.messages import Message

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from letopis.outbox.alerting.channels import Channel
    from letopis.outbox.alerting.incidents import Rules
    from letopis.outbox.alerting.language import Style
    from letopis.outbox.alerting.notifications import Callback
    from letopis.store.conversation_store import ConversationStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A reply that was appended to be sent, and never confirmed as sent or failed.

    :ivar appended_at: when it became a message of the history.
    :ivar message: with the edits made since; ``None`` if it was erased, through whatever outbox, or if it was saved and
        the history store cannot be asked.
    :ivar abandoned: whether its writer has ended, so that no other program will confirm it.
    :ivar failure: why the history's ``sender`` has given it up; ``None`` if it has not.
    """

    conversation_id: str
    message_id: str
    owner_id: str | None
    appended_at: datetime
    message: Message | None
    abandoned: bool
    failure: str | None = None

    @property
    def interrupted(self) -> bool:
        """Whether it was cut off while it was written; ``False`` if the message is not known any more."""
        return self.message is not None and self.message.status == "interrupted"


OnUnconfirmed = Callable[[tuple[Unconfirmed, ...]], Awaitable[Any] | Any]
"""A function that is called with the replies that were never confirmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsentReply:
    """A reply that the ``sender`` of a history is to send.

    :ivar message: with the edits made since. Its ``status`` is ``interrupted`` if it was cut off while written.
    :ivar appended_at: when it became a message of the history.
    :ivar idempotency_key: the id of the event that appended it, the same at each attempt, as for ``Reply.event_id``.
    :ivar attempt: from 1, counted in this process. The platform may hold the reply at the first one, too.
    """

    conversation_id: str
    owner_id: str | None
    message: Message
    appended_at: datetime
    idempotency_key: str
    attempt: int


Sender = Callable[[UnsentReply], Awaitable[Any] | Any]
"""A function that sends a reply and returns the ids that the platform gave it, a mapping or ``None``."""

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")

DEFAULT_PAGE_SIZE: Final = 50  # messages of a page if the caller does not ask for a number
_BOUNDS: Final = Bounds()
_POLICY: Final = RetryPolicy()
_RETENTION: Final = Retention()


class AppendOptions(TypedDict, total=False):
    """The keywords of an append; ``History.append`` tells what each is."""

    owner: Owner | None
    metadata: Mapping[str, Any] | None
    occurred_at: datetime | None
    expected: After | None
    after: After | None
    fail_if_types: Collection[str] | None
    confirm: bool


@dataclass(frozen=True, slots=True)
class Options:
    """What ``History(...)`` is given, by keyword but for the path.

    :param path: the outbox, a file on a local disk, created with mode 0600. It may be the bot's own SQLite
        database.
    :param store: the history store, by URL or path; by default an SQLite file beside the outbox (``bot.outbox.db`` and
        ``bot.history.db``). Your own :class:`ConversationStore` is not closed, and belongs to one event loop. The first
        delivery binds the outbox to its store; a relay with another store delivers nothing.
    :param relay: ``False`` if another process delivers, for example ``letopis relay``.
    :param watch: ``False`` to send no notifications of stuck messages, for a program that only reads.
    :param create: ``False`` to refuse an outbox that does not exist.
    :param policy: how events that the store refuses are retried before they block their conversation.
    :param retention: how long delivered events stay readable in the outbox.
    :param limits: how large and how deep an event may be.
    :param bounds: how large the outbox may become, and what it leaves free on its disk, before appends raise
        ``OutboxFull``.
    :param upcasters: how older versions of your own events are read.
    :param on_stuck: called with an ``Incident`` once for each user whose messages are stuck, in this process, also
        if another process delivers or none does.
    :param on_recovered: called with the same ``Incident`` once the messages are saved.
    :param on_unconfirmed: called once after opening with a tuple of ``Unconfirmed``: the replies whose process
        ended before it confirmed them. See :meth:`reply`. With a ``sender``, it is called for each reply that is given
        up instead, once, with the ``failure``.
    :param sender: called with an ``UnsentReply`` for each reply whose process ended before it confirmed it, and for
        those of ``Reply.send``. What it returns confirms the reply: the platform's ids, ``None``, or a ``MessageSent``.
        An exception is a failed attempt, repeated after 1, 2, 4 s ... up to an hour; ``SendRefused`` gives the reply
        up, as failed. The replies of a conversation go in order. Each is sent at least once, and again if a process
        ends between sending and confirming, or if a call that failed was carried out.
    :param send_within: seconds since its append after which a reply is given up.
    :param channels: addresses of operators to notify: ``https://`` is a webhook, others are for Apprise (extra
        ``letopis[alerts]``). The result of ``open_channels`` is accepted too.
    :param rules: thresholds for incidents and alerts, in seconds; by default ``Rules()``.
    :param locale: the language of the texts of incidents.
    :param style: what the texts of incidents say: ``retrying``, or ``failed`` for the sentence of older bots.
    :param read_timeout: seconds that a read waits for the store before it is answered from the outbox.
    :param own_thread: keep the outbox open in an event loop and a thread of its own, for programs whose loops come and
        go or are blocked. Each call then crosses two threads, and callbacks run there.
    :param now: the clock.
    """

    path: str | os.PathLike[str]
    _: KW_ONLY
    store: str | URL | os.PathLike[str] | ConversationStore | None = None
    relay: bool = True
    watch: bool = True
    create: bool = True
    policy: RetryPolicy = _POLICY
    retention: Retention = _RETENTION
    limits: Limits = DEFAULT_LIMITS
    bounds: Bounds = _BOUNDS
    upcasters: Upcasters = NO_UPCASTERS
    on_stuck: Callback | None = None
    on_recovered: Callback | None = None
    on_unconfirmed: OnUnconfirmed | None = None
    sender: Sender | None = None
    send_within: float = 86_400.0
    channels: Iterable[str | Channel] = ()
    rules: Rules | None = None
    locale: str | None = None
    style: Style = "retrying"
    read_timeout: float = 3.0
    own_thread: bool = False
    now: Callable[[], datetime] = utc_now

    def __post_init__(self) -> None:
        from letopis.outbox.alerting.incidents import Rules  # with the first history rather than with its class

        _check_callback("on_stuck", self.on_stuck)
        _check_callback("on_recovered", self.on_recovered)
        _check_callback("on_unconfirmed", self.on_unconfirmed, takes="a tuple of Unconfirmed")
        _check_callback("sender", self.sender, takes="an UnsentReply")
        _check_callback("now", self.now, takes="nothing and returns the time")
        for name, option, kind in (
            ("policy", self.policy, RetryPolicy),
            ("retention", self.retention, Retention),
            ("limits", self.limits, Limits),
            ("bounds", self.bounds, Bounds),
            ("upcasters", self.upcasters, Upcasters),
            ("rules", Rules() if self.rules is None else self.rules, Rules),
        ):
            if not isinstance(option, kind):
                raise ConfigurationError(f"{name} must be {kind.__name__}(...), not {type(option).__name__}")
        check_number(self.read_timeout, "read_timeout")
        check_number(self.send_within, "send_within")
        if self.send_within <= 0:
            raise ConfigurationError("send_within must be more than 0 seconds")
        if isinstance(self.channels, str) or not isinstance(self.channels, Iterable):
            raise ConfigurationError(f"channels must be a list of addresses, not {type(self.channels).__name__}")
        object.__setattr__(self, "channels", tuple(self.channels))  # read again by each opening


def keywords_of(options: Callable[P, V]) -> Callable[[Callable[[T, V], None]], Callable[Concatenate[T, P], None]]:
    """Decorate an ``__init__`` that takes a value: it takes what makes that value, and type checkers check it."""

    def decorate(method: Callable[[T, V], None]) -> Callable[Concatenate[T, P], None]:
        @wraps(method)
        def make(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
            method(self, options(*args, **kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.signature(options)
        given = signature.replace(parameters=[own, *signature.parameters.values()])
        vars(make)["__signature__"] = given
        return make

    return decorate


def known_owner(owner: Owner) -> str:
    if (known := owner_id(owner)) is None:
        raise InvalidInput("owner", "must be text or a whole number, not None")
    return known


def _check_callback(name: str, callback: object, *, takes: str = "an Incident") -> None:
    # Otherwise it would show when the first user is to be notified.
    if callback is not None and not callable(callback):
        raise ConfigurationError(f"{name} must be a function that takes {takes}, not {type(callback).__name__}")
