"""Repeat output until the user interrupts the command or stdout has no reader."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import click

from letopis.outbox.cli.interface.output import reader_is_gone

CLEAR: Final = "\x1b[H\x1b[2J"
"""Moves the cursor to the corner of the screen and erases it."""

INTERVAL: Final = click.FloatRange(min=0.1, max=3600)
"""The type of an option with the seconds between two looks."""


class FollowedScreen:
    """Prints a text over the previous one on a terminal; otherwise below it, and only if something has changed."""

    def __init__(self) -> None:
        self._drawn_over = sys.stdout.isatty()
        self._printed: object = None

    def show(self, text: str, *, title: str, key: object) -> None:
        """Print a text.

        :param title: a line above it, on a terminal.
        :param key: equal as long as nothing has changed that is worth a new text.
        """
        if self._drawn_over:
            click.echo(f"{CLEAR}{title}\n\n{text}")
        elif key != self._printed:
            click.echo(text if self._printed is None else f"\n{text}")
        self._printed = key


def repeat(step: Callable[[], None], *, seconds: float) -> None:
    """Call ``step`` every ``seconds`` until it raises, the user interrupts the command, or stdout has no reader.

    :raises BrokenPipeError: stdout has no reader.
    """
    while True:
        step()
        sys.stdout.flush()
        time.sleep(seconds)
        check_reader()


def check_reader() -> None:
    """Check that stdout has a reader.

    :raises BrokenPipeError: it has none.
    """
    if reader_is_gone(sys.stdout):
        raise BrokenPipeError
