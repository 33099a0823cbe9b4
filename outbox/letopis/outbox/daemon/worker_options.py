"""Hold how a daemon serves its outboxes, as far as a reload may change it."""

from __future__ import annotations

from dataclasses import dataclass

from letopis.outbox.alerting import texts
from letopis.outbox.alerting.channels import Channel
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.event_log.retention import Retention
from letopis.outbox.retry.policy import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How outboxes are served, as far as a reload may change it.

    :ivar rules: of the watch.
    :ivar locale: of its notifications.
    :ivar style: of its notifications.
    """

    policy: RetryPolicy
    retention: Retention
    channels: tuple[Channel, ...]
    rules: Rules
    locale: str
    style: texts.Style
