"""Read a page as a reader does: save its programs, type its commands, and compare what they print.

A block of Python is saved under the name that the text before it gives (``bot.py``). In a ``console`` block, lines
that begin with ``$`` are typed, and the others are what is then seen. ``...`` stands for what differs from run to run:
in a line for any words, as a line of its own for any lines.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.child import ran

_FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([\w.-]+\.py)`")
TIMEOUT_SECONDS = 90


class Block(NamedTuple):
    language: str
    body: str
    before: str


class Step(NamedTuple):
    command: str
    expected: str
    printed: str

    @property
    def holds(self) -> bool:
        return matches(self.expected, self.printed)

    def __str__(self) -> str:
        return f"$ {self.command}\n--- the page\n{self.expected}\n--- printed\n{self.printed}"


def blocks(text: str) -> Iterator[Block]:
    end = 0
    for found in _FENCE.finditer(text):
        yield Block(found["language"].strip(), found["body"], text[end : found.start()])
        end = found.end()


def programs(page: Path) -> list[str]:
    return [block.body for block in blocks(page.read_text(encoding="utf-8")) if block.language == "python"]


def matches(expected: str, printed: str) -> bool:
    """Return True if the text is the expected one, where ``...`` stands for any words, or any lines."""
    lines = [
        "(?:[^\n]*\n)*?" if line == "..." else re.escape(line).replace(re.escape("..."), "[^\n]*") + "\n"
        for line in expected.rstrip().splitlines()
    ]
    return re.fullmatch("".join(lines), f"{printed.rstrip()}\n") is not None


def commands(body: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = f"{command[:-1]}{more.lstrip()}"
        yield command, output


def follow(page: Path, folder: Path) -> Iterator[Step]:
    """Do what a page says, in an empty folder with a virtual environment, and return each command's step."""
    (folder / ".venv").symlink_to(sys.prefix)
    name = ""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python":
            named = _NAME.findall(block.before)
            name = named[-1] if named else name
            assert name, f"{page.name}: a program without a name:\n{block.body}"
            (folder / name).write_text(block.body, encoding="utf-8")
        elif block.language == "console":
            for command, expected in commands(block.body):
                yield Step(command, expected, typed(command, folder))


def typed(command: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONWARNINGS": "error", "COLUMNS": "88", "TZ": "UTC"}
    environment["PATH"] = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}"
    words = ["sh", "-c", f"exec 2>&1; {command}"]
    return ran(*words, cwd=folder, env=environment, encoding="utf-8", timeout=TIMEOUT_SECONDS).stdout


def main() -> int:
    """Print each step of the named pages, for their author. Return 1 if one does not hold."""
    bad = 0
    for page in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            for step in follow(Path(page), Path(folder)):
                print("ok  " if step.holds else "BAD ", step if not step.holds else step.command)
                bad += not step.holds
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
