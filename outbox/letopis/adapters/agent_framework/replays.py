# pyright: reportMissingImports=false
"""Tell what is new in a run from what it replays: callers may give a whole transcript, and few messages have an id."""

from __future__ import annotations

from collections.abc import Sequence

from agent_framework import Message


def most_replayed(given: Sequence[Message]) -> int:
    """Return how many of these messages may be a replay, from the first one; 0 if there is nothing to compare.

    The last one is new, since a run ends with an answer, unless ids show that the whole run is saved once more. People
    repeat themselves, so what only a user said is no replay.
    """
    most = len(given) if all(one.message_id is not None for one in given) else len(given) - 1
    return most if any(_is_telling(one) for one in given[: max(0, most)]) else 0


def without_replayed(stored: Sequence[Message], given: Sequence[Message]) -> list[Message]:
    """Return the messages after those with which the stored ones end.

    :param stored: the newest ones, at least as many as :func:`most_replayed` says.
    """
    for overlap in range(min(most_replayed(given), len(stored)), 0, -1):
        replayed = given[:overlap]
        if any(map(_is_telling, replayed)) and all(map(_is_same, stored[-overlap:], replayed)):
            return list(given[overlap:])
    return list(given)


def _is_telling(message: Message) -> bool:
    """Return True if the message is not simply said again."""
    return message.message_id is not None or message.role not in ("user", "system")


def _is_same(one: Message, other: Message) -> bool:
    if one.message_id is not None and other.message_id is not None:
        return bool(one.message_id == other.message_id)
    return bool(one.role == other.role and one.contents == other.contents)
