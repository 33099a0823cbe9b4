"""What the command prints: data on stdout, everything else on stderr, plain wherever it is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, whose keys are documented and stay.")
"""The option of every verb that prints data."""


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    import orjson

    write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write(data: bytes) -> None:
    """Write bytes to stdout as they are: UTF-8, whatever the terminal's encoding is said to be."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


def clean(text: str, *, lines: bool = False) -> str:
    """Return text of a stranger's so that it can do nothing to a terminal; ``lines`` keeps its line feeds and tabs."""
    kept = "\n\t" if lines else ""
    return "".join(
        character if character.isprintable() or character in kept else ascii(character)[1:-1] for character in text
    )


def cut(text: str, width: int) -> str:
    """Return ``text`` on one line of at most ``width`` characters."""
    line = clean(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 3]}..."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return lines of aligned columns; those in ``right`` are aligned to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def span(seconds: float | None) -> str:
    """Return a length of time for people, in its two largest units; a dash for none."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def fancy(stream: TextIO) -> bool:
    """Whether ``stream`` may have colours and moving bars: a terminal, and nobody asked for none."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a long run is: a bar on stderr where that is a terminal and rich is installed, else nothing.

    :param total: of whatever the yielded function is told the amount of; ``None`` where it is not known.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        bar = None
    else:
        bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            if fancy(sys.stderr)
            else None
        )
    if bar is None:
        yield lambda _: None
        return
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
