# pyright: reportMissingImports=false
"""Tell new messages of a run from replayed ones: callers may pass a whole transcript, and few messages have an id."""

from __future__ import annotations

from collections.abc import Sequence

from agent_framework import Message


def most_replayed(given: Sequence[Message], new: int = 1) -> int:
    """Return how many of the first messages may be a replay; 0 if there is nothing to compare.

    The last ones are new, since a run ends with an answer, unless ids show that the whole run is being saved again.
    People repeat themselves, so user messages alone are no replay.

    :param new: how many of the last messages are new: what the run was asked last, and all that it answered.
    """
    most = len(given) if all(one.message_id is not None for one in given) else len(given) - new
    return most if any(_is_telling(one) for one in given[: max(0, most)]) else 0


def without_replayed(stored: Sequence[Message], given: Sequence[Message], new: int = 1) -> list[Message]:
    """Return the messages that follow the replay of the stored ones.

    :param stored: the newest ones, at least as many as :func:`most_replayed` says.
    """
    for overlap in range(min(most_replayed(given, new), len(stored)), 0, -1):
        replayed = given[:overlap]
        if any(map(_is_telling, replayed)) and all(map(_is_same, stored[-overlap:], replayed)):
            return list(given[overlap:])
    return list(given)


def _is_telling(message: Message) -> bool:
    """Return True if matching this message suggests a replay: people repeat themselves, but not ids or answers."""
    return message.message_id is not None or message.role not in ("user", "system")


def _is_same(one: Message, other: Message) -> bool:
    if one.message_id is not None and other.message_id is not None:
        return bool(one.message_id == other.message_id)
    return bool(one.role == other.role and one.contents == other.contents)
