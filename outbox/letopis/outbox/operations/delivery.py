"""Assemble what delivers from an open outbox and watches it: in a bot, in a daemon, or for one run of the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incidents import BreakerView, Rules
from letopis.outbox.alerting.language import Style
from letopis.outbox.alerting.monitor import AlertMonitor, breaker_view
from letopis.outbox.event_log.retention import Pruner, Retention
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.relay import Relay
from letopis.outbox.retry.circuit_breaker import Breaker
from letopis.outbox.retry.policy import RetryPolicy
from letopis.store.conversation_store import ConversationStore


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOptions:
    """How an outbox is delivered and watched, as far as a reload may change it."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    retention: Retention = field(default_factory=Retention)
    channels: Sequence[Channel] = ()
    rules: Rules = field(default_factory=Rules)
    locale: str | None = None
    style: Style = "retrying"


class Deliverer:
    """The relay of an outbox, the pruner that it runs, and the monitor that watches both."""

    def __init__(self, outbox: OutboxFile, options: DeliveryOptions) -> None:
        self._outbox = outbox
        self._options = options
        self._pruner = Pruner(options.retention, outbox.now_us)
        self.relay: Relay | None = None
        self.monitor: AlertMonitor | None = None

    def add_relay(self, store: ConversationStore, **more: Any) -> Relay:
        """Make the relay; ``more`` are further parameters of :class:`Relay`."""
        options = self._options
        self.relay = Relay(
            self._outbox,
            store,
            policy=options.policy,
            retention=options.retention.content,
            chores=(lambda connection: self._pruner(connection),),  # which a change of options replaces
            **more,
        )
        return self.relay

    def add_monitor(self, **more: Any) -> AlertMonitor:
        """Make the monitor; ``more`` are further parameters of :class:`AlertMonitor`."""
        self.monitor = AlertMonitor(self._outbox, breaker=self.breaker_view, **self._watching(), **more)
        return self.monitor

    def change(self, options: DeliveryOptions) -> None:
        """Continue with other options."""
        self._options = options
        self._pruner = Pruner(options.retention, self._outbox.now_us)
        if self.relay is not None:
            self.relay.policy = options.policy
            self.relay.retention = options.retention.content
        if self.monitor is not None:
            for name, value in self._watching().items():
                setattr(self.monitor, name, value)

    def breaker(self) -> Breaker | None:
        """Return the breaker of the relay while that is at work; otherwise the one that counts is another process's."""
        relay = self.relay
        at_work = relay is not None and (relay.lease.held or relay.wrong_store_reason is not None)
        return relay.breaker if relay is not None and at_work else None

    def breaker_view(self) -> BreakerView | None:
        breaker = self.breaker()
        return None if breaker is None else breaker_view(breaker)

    def _watching(self) -> dict[str, Any]:
        return {name: getattr(self._options, name) for name in ("channels", "rules", "locale", "style")}
