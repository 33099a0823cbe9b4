"""Import files made to fill the memory, each in a process whose memory is measured."""

import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Final, NamedTuple

from tests.proof.harness import Setting, Tally
from tests.support.fix_disk import NotHere

ROOMY: Final = 48
"""Megabytes that the command may take beyond what it takes for an empty file: the longest line, read and decoded."""
LINE: Final = 600
"""The same for a line as long as one with the most large content may be, which is read before it is refused."""
LINE_MEGABYTES: Final = 700
PARSED: Final = 320
"""The same where the line is JSON of as many empty lists as fit into it: each takes 64 bytes when it is parsed."""
UNBOUNDED: Final = (
    "from letopis.store.transfer import jsonl;"
    "jsonl.read_lines.__kwdefaults__['max_line_bytes'] = 10**10;"
    "from letopis.ops.cli import main; main()"
)


class Bomb(NamedTuple):
    """What is read from standard input, and what must come of it."""

    name: str
    pieces: Callable[[], Iterator[bytes]]
    codes: tuple[int, ...]
    says: str
    ends: bool = True
    room: int = ROOMY


class Burst(NamedTuple):
    """The result of one."""

    megabytes: int
    code: int
    told: str


HEAD: Final = b'{"conversation_id":"c","role":"user","content":"x","metadata":{"a":'


def bombs(megabytes: int) -> Iterator[Bomb]:
    line, one_line, zeros = 7_900_000, repeat(b"x" * 1_048_576, LINE_MEGABYTES), repeat(bytes(1_048_576))
    yield Bomb("one line", lambda: one_line, (1,), "is longer than", room=LINE)
    # CPython ends by the signal itself where it fell into an exec(), as a module with dataclasses makes many.
    ended = (130, -signal.SIGINT)
    yield Bomb("zeros without an end", lambda: zeros, ended, "interrupted", ends=False, room=LINE)
    yield Bomb("brackets", lambda: iter([HEAD, b"[" * line, b"\n"]), (1,), "nested too deep")
    yield Bomb("objects", lambda: iter([b'{"a":' * (line // 5), b"\n"]), (1,), "nested too deep")
    yield Bomb("empty lists", lambda: iter([HEAD, b"[", b"[]," * (line // 3), b"[]]}}\n"]), (1,), "", room=PARSED)
    yield Bomb("digits", lambda: iter([HEAD, b"9" * line, b"}}\n"]), (1,), "64 bits")
    yield Bomb("bad lines", lambda: (b"{}\n" * 10_000 for _ in range(megabytes // 64)), (1,), "is missing")
    yield Bomb("compressed", lambda: _squeezed(megabytes), (1,), "UTF-8")


def _squeezed(megabytes: int) -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    for _ in range(megabytes):
        yield packer.compress(bytes(1_048_576))
    yield packer.flush()


def burst(bomb: Bomb, folder: Path, *, code: str | None = None, patience: float = 60.0) -> Burst:
    how = ["-m", "letopis.ops.cli"] if code is None else ["-c", code]
    words = [sys.executable, *how, "history", "import", "jsonl", "-", "--dry-run"]
    told = folder / "told"
    with told.open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE, stdout=out, stderr=out)
    feeding = threading.Thread(target=_feed, args=(process, bomb), daemon=True)
    feeding.start()
    begun, most, interrupted = time.monotonic(), 0, bomb.ends
    while process.poll() is None:
        most = max(most, _peak(process.pid))
        time.sleep(0.02)
        if time.monotonic() > begun + patience:
            process.kill()
        elif not interrupted and time.monotonic() > begun + 2.5:
            interrupted = True
            process.send_signal(signal.SIGINT)
    feeding.join(10)
    with told.open("rb") as said:
        return Burst(most // 1024, process.returncode, said.read(4_000).decode("utf-8", "replace"))


def _peak(pid: int) -> int:
    """Return the most kilobytes that a process has had; what it was forked from is not in it, as in `ru_maxrss`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) if found else 0


def _feed(process: subprocess.Popen[bytes], bomb: Bomb) -> None:
    assert process.stdin is not None
    try:
        for piece in bomb.pieces():
            process.stdin.write(piece)
        process.stdin.close()
    except OSError:
        return  # it has read enough


def faults(bomb: Bomb, burst: Burst, base: int) -> list[str]:
    """Return what was not as it must be."""
    found = []
    if burst.megabytes - base > bomb.room:
        found.append(f"{bomb.name}: {burst.megabytes} MB, {base} MB for an empty file")
    if burst.code not in bomb.codes:
        found.append(f"{bomb.name}: exit code {burst.code}: {burst.told[-200:]!a}")
    if bomb.says not in burst.told or "Traceback" in burst.told:
        found.append(f"{bomb.name}: does not say {bomb.says!r}: {burst.told[-200:]!a}")
    return found


def imported(setting: Setting) -> Tally:
    empty = _of_an_empty_file(setting)
    tally = Tally(notes=f"{empty} MB for an empty file")
    for one in bombs(setting.many(256, 64)):
        if not setting.options.short or one.name == "one line":
            came = burst(one, setting.folder)
            tally.count += 1
            tally.notes += f", {one.name} {came.megabytes} MB"
            tally.blame(faults(one, came, empty))
    return tally


def unbounded(setting: Setting) -> Tally:
    """The control: the importer takes a line of any length."""
    line = next(bombs(setting.many(256, 96)))
    came = burst(line, setting.folder, code=UNBOUNDED)
    found = [words for words in faults(line, came, _of_an_empty_file(setting)) if "MB" in words]
    return Tally(1, problems=found, notes=f"{came.megabytes} MB")


def _of_an_empty_file(setting: Setting) -> int:
    """Return the megabytes that the import of an empty file takes."""
    empty = burst(Bomb("empty", lambda: iter(()), (0,), ""), setting.folder)
    if not empty.megabytes:
        raise NotHere("no /proc to measure the memory of a process with")
    return empty.megabytes
