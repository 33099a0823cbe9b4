"""Repeat output until the user interrupts the command, and tell what is new since the last look."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.interface.output import reader_is_gone

if TYPE_CHECKING:
    from uuid import UUID

    from letopis.store.model.conversations import RecordedMessage


CLEAR: Final = "\x1b[H\x1b[2J"  # moves the cursor to the corner of the screen and erases it

INTERVAL: Final = click.FloatRange(min=0.1, max=3600)  # the type of an option with the seconds between two looks


class FollowedScreen:
    """Prints a text over the previous one on a terminal; otherwise below it, and only if something has changed."""

    def __init__(self) -> None:
        self._drawn_over = sys.stdout.isatty()
        self._printed: object = None

    def show(self, text: str, *, title: str, key: object) -> None:
        if self._drawn_over:
            click.echo(f"{CLEAR}{title}\n\n{text}")
        elif key != self._printed:
            click.echo(text if self._printed is None else f"\n{text}")
        self._printed = key


def repeat(step: Callable[[], None], *, seconds: float) -> None:
    """Call ``step`` every ``seconds`` until it raises, the user interrupts the command, or stdout has no reader."""
    while True:
        step()
        sys.stdout.flush()
        time.sleep(seconds)
        check_reader()


def check_reader() -> None:
    """Raise ``BrokenPipeError`` if stdout has no reader."""
    if reader_is_gone(sys.stdout):
        raise BrokenPipeError


MAX_REMEMBERED: Final = 20_000  # messages whose state is remembered; older ones count as new again


class Tail:
    """Compares the end of a conversation with what was seen of it before.

    A message is new if it follows one that is known. Older ones that come into view, because others were taken back or
    the store can be read again, are not.
    """

    def __init__(self, state: Callable[[RecordedMessage], Hashable]) -> None:
        self._state = state
        self._seen: dict[UUID, Hashable] = {}
        self._from_start = False

    @property
    def started(self) -> bool:
        return bool(self._seen)

    def knows(self, messages: Sequence[RecordedMessage]) -> bool:
        """Return True if one of the messages was seen before."""
        return any(message.event_id in self._seen for message in messages)

    def news(self, messages: Sequence[RecordedMessage], *, from_start: bool) -> list[RecordedMessage]:
        """Return the messages to show, in their order, and remember them all."""
        first_known = next((index for index, message in enumerate(messages) if message.event_id in self._seen), 0)
        begin = 0 if from_start and self._from_start else first_known
        shown: list[RecordedMessage] = []
        for index, message in enumerate(messages):
            state = self._state(message)
            if message.event_id in self._seen:
                if self._seen[message.event_id] != state:
                    shown.append(message)
            elif index >= begin:
                shown.append(message)
            self._seen[message.event_id] = state
        self._from_start = from_start
        for event_id in list(self._seen)[:-MAX_REMEMBERED]:
            del self._seen[event_id]
        return shown
