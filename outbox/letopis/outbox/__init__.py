"""The outbox of Letopis: what a bot embeds, and what delivers for it."""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from letopis.outbox.alerts import Channel
    from letopis.outbox.backoff import RetryPolicy
    from letopis.outbox.blocking import BlockingHistory
    from letopis.outbox.blocking_parts import BlockingReceipt, BlockingReply, BlockingTransaction
    from letopis.outbox.bounds import Bounds
    from letopis.outbox.file import OutboxFile
    from letopis.outbox.history import History
    from letopis.outbox.incidents import Rules
    from letopis.outbox.notices import Incident
    from letopis.outbox.receipts import Receipt
    from letopis.outbox.relay import Relay
    from letopis.outbox.replies import Unconfirmed
    from letopis.outbox.reply import Reply
    from letopis.outbox.status import Status
    from letopis.outbox.tail import Retention
    from letopis.outbox.transaction import Transaction

__all__ = (
    "BlockingHistory",
    "BlockingReceipt",
    "BlockingReply",
    "BlockingTransaction",
    "Bounds",
    "Channel",
    "History",
    "Incident",
    "OutboxFile",
    "Receipt",
    "Relay",
    "Reply",
    "Retention",
    "RetryPolicy",
    "Rules",
    "Status",
    "Transaction",
    "Unconfirmed",
)

_ROOMS = {
    "BlockingHistory": "blocking",
    "BlockingReceipt": "blocking_parts",
    "BlockingReply": "blocking_parts",
    "BlockingTransaction": "blocking_parts",
    "Bounds": "bounds",
    "Channel": "alerts",
    "History": "history",
    "Incident": "notices",
    "OutboxFile": "file",
    "Receipt": "receipts",
    "Relay": "relay",
    "Reply": "reply",
    "Retention": "tail",
    "RetryPolicy": "backoff",
    "Rules": "incidents",
    "Status": "status",
    "Transaction": "transaction",
    "Unconfirmed": "replies",
}


def __getattr__(name: str) -> object:
    # The command lives in this package: `letopis --help` must not wait for SQLAlchemy.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
