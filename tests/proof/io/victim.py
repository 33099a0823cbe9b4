"""Fork a child for each order, in which strace makes a chosen call fail.

    strace ... -e inject=pwrite64:error=EIO:when=400 python ...

strace counts in each thread separately, and knows one number for as long as it runs. So a thread of a child that is to
fail first makes idle calls, until the K-th that matters is the one that fails: to start the library anew for each would
take most of the time. Orders come as lines of JSON on standard input, answers go to standard output.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.proof.io.script import live, make

LIMIT: Final = 40.0  # seconds after which a child that has not ended hangs
_NOWHERE: Final = os.open(os.devnull, os.O_RDWR)


def _pwrite() -> None:
    os.pwrite(_NOWHERE, b"", 0)


def _fdatasync() -> None:
    os.fdatasync(_NOWHERE)


def _ftruncate() -> None:
    os.ftruncate(_NOWHERE, 0)


IDLE: Final[dict[str, Callable[[], None]]] = {
    "pwrite64": _pwrite,
    "fdatasync": _fdatasync,
    "ftruncate": _ftruncate,
}


def prepare_threads(order: dict[str, Any], call: str, number: int) -> None:
    """Number the threads, this one is 0, and have those that the order names make idle calls before they begin.

    An order without a thread is for all of them; one with K 0 is for none.
    """
    ours, numbers = threading.Thread.run, itertools.count()
    k, chosen = order["k"], order["thread"]

    def begin() -> None:
        mine = next(numbers)
        say(f"thread {mine}")
        if k and chosen in (mine, None):
            for _ in range(number - k - (call == "pwrite64")):
                with suppress(OSError):
                    IDLE[call]()

    def run(self: threading.Thread) -> None:
        begin()
        ours(self)

    threading.Thread.run = run  # type: ignore[method-assign]
    begin()


def say(words: str) -> None:
    with suppress(OSError):  # it may be the one that fails: strace writes it down all the same
        os.pwrite(_NOWHERE, words.encode(), 0)


def child(order: dict[str, Any], call: str, number: int, answer: int) -> None:
    """Live with the fault, and tell how it went."""
    prepare_threads(order, call, number)
    told: dict[str, Any]
    try:
        refused, problems = live(Path(order["folder"]), once=order["once"], careless=order["careless"])
        told = {"refused": refused, "problems": problems}
    except BaseException as error:  # whatever it is: it came out of the library
        told = {"refused": [], "problems": [f"died of {type(error).__name__}: {str(error)[:200]}"]}
    os.write(answer, json.dumps(told).encode())


def carry_out(order: dict[str, Any], call: str, number: int) -> dict[str, Any]:
    """Fork a child, wait for it, and return what it told."""
    ours, theirs = os.pipe()
    say(f"order {order['number']}")
    pid = os.fork()
    if pid == 0:
        child(order, call, number, theirs)
        os._exit(0)
    os.close(theirs)
    text = b""
    deadline = time.monotonic() + LIMIT
    while True:
        ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            text = b'{"refused": [], "problems": ["hung"]}'
            break
        piece = os.read(ours, 65536)
        if not piece:
            break
        text += piece
    os.close(ours)
    os.waitpid(pid, 0)
    told: dict[str, Any] = json.loads(text or b'{"refused": [], "problems": ["ended without a word"]}')
    return told


def obey(call: str, number: int) -> None:
    """Carry out one order after the other, with the call of that number made to fail."""
    with tempfile.TemporaryDirectory() as folder:
        # What is imported late is imported now.
        asyncio.run(make(Path(folder)))
        live(Path(folder), once=True, careless=False)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(carry_out(order, call, number) | {"number": order["number"]}), flush=True)
