"""Print data on stdout or into a private file, and everything else on stderr, plain unless it is a terminal."""

from __future__ import annotations

import os
import re
import secrets
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO, TypeVar

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit

F = TypeVar("F", bound=Callable[..., Any])

_META: Final = "letopis.ops.cli.interface.output"


def _keep(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_META] = value


JSON = click.option(
    "--json", is_flag=True, expose_value=False, callback=_keep, help="Print JSON (stable, documented schema)."
)
"""The option of every verb that prints data; :func:`emit` follows it."""
FORCE = click.option("--force", is_flag=True, help="Replace FILE if it exists.")
TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: the longest wait, then exit 75."
)


def env_option(name: str, *, prefix: str = "LETOPIS_", **more: Any) -> Callable[[F], F]:
    """Make an option that an environment variable of the same name may set, too."""
    variable = prefix + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=variable, show_envvar=True, **more)


def interval_option(mode: str, seconds: float) -> Callable[[F], F]:
    """Make ``--interval``, the seconds between two looks of a verb with a ``mode`` that repeats its output."""
    help_text = f"With {mode}: the time between two looks."
    kind = click.FloatRange(min=0.1, max=3600)
    return click.option("--interval", type=kind, metavar="SECONDS", default=seconds, show_default=True, help=help_text)


def wants_json() -> bool:
    """Return True if the running command was given ``--json``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_META))


def emit(value: Any, *, text: str | Callable[[], object], line: bool = False) -> None:
    """Print ``value`` on stdout if the command was given ``--json``, otherwise ``text``."""
    import orjson

    if wants_json():
        indented = orjson.OPT_APPEND_NEWLINE if line else orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2
        write(orjson.dumps(value, option=indented))
    elif callable(text):
        text()
    elif text:
        click.echo(text)


def write(data: bytes) -> None:
    """Write bytes to stdout unchanged: UTF-8, whatever the terminal's encoding."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextmanager
def open_output(file: str, *, force: bool) -> Iterator[BinaryIO]:
    """Open ``file``, or stdout for ``-``, for its owner only. It appears when the block ends without an error."""
    from letopis.store.private_files import flush_to_disk

    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(file)
    if target.exists() and not force:
        raise CommandExit(Exit.FAILED, f"{printable(file)} exists: name another file, or give --force to replace it")
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: write to it directly
        with target.open("wb") as stream:
            yield stream
        return
    # For its owner only: these are conversations. Under an unguessable name, so that no link can be placed there, and
    # two exports to one name do not collide; the last one that completes stays.
    _remove_abandoned_parts(target.parent)
    part, descriptor = _new_part(target)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
        with open(descriptor, "wb") as stream:  # noqa: PTH123  # a descriptor, not a path
            yield stream
            stream.flush()
            flush_to_disk(stream.fileno())
            if os.name != "nt":
                part.replace(target)  # while it is locked
        if os.name == "nt":
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _new_part(target: Path) -> tuple[Path, int]:
    """Create a part that is locked for as long as its descriptor is open, which the end of the process closes too."""
    while True:
        part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)  # another export took it for an abandoned one before it was locked


def _remove_abandoned_parts(folder: Path) -> None:
    """Delete what killed exports left in a folder: the parts that no process has locked."""
    with suppress(OSError):  # a folder may be written and not listed
        for part in [path for path in folder.iterdir() if _PART.fullmatch(path.name)]:
            with suppress(OSError):  # a living export's, or another user's
                descriptor = os.open(part, os.O_RDONLY | _NO_LINK)
                try:
                    _lock(descriptor, wait=False)
                    part.unlink()
                finally:
                    os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> None:
    """Lock a file, where the system can; Windows deletes no open file anyway."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_PART: Final = re.compile(r"\..{1,100}\.[0-9a-f]{16}\.part", re.DOTALL)
_before_note: Final[list[Callable[[], None]]] = []


def note(text: str) -> None:
    """Print a line on stderr."""
    for prepare in _before_note:
        prepare()
    click.echo(text, err=True)


def remark(text: str) -> None:
    """Print a line on stderr that only a reader needs: nothing with ``--json``."""
    if not wants_json():
        note(text)


@contextmanager
def before_note(prepare: Callable[[], None]) -> Iterator[None]:
    """Have ``prepare`` called before each line on stderr while the ``with`` block runs."""
    _before_note.append(prepare)
    try:
        yield
    finally:
        _before_note.remove(prepare)


def printable(text: str, *, lines: bool = False) -> str:
    """Return untrusted text with control characters escaped; ``lines`` keeps line feeds and tabs."""
    kept = "\n\t" if lines else ""
    return "".join(
        character if character.isprintable() or character in kept else ascii(character)[1:-1] for character in text
    )


def check_reader() -> None:
    """Raise ``BrokenPipeError`` if stdout is a pipe without a reader; writes nothing."""
    if hasattr(select, "poll"):
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        if any(state & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, state in watched.poll(0)):
            raise BrokenPipeError


def counted(count: int, noun: str) -> str:
    """Return ``1 event``, ``2 events``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def truncate(text: str, width: int) -> str:
    """Return ``text`` on one line of at most ``width`` characters."""
    line = printable(" ".join(text.split()))
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


def format_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units; a dash for ``None``."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def terminal_width(stream: TextIO) -> int | None:
    """Return the columns of a terminal; ``None`` if ``stream`` is none, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # no terminal, or no file at all
        return None


def supports_style(stream: TextIO) -> bool:
    """Return True if ``stream`` may have colours: a terminal without ``NO_COLOR``."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
