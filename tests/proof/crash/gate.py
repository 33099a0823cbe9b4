"""Stop a process at each system call of some kinds, in all its threads; it is let on, fails, or is killed there.

By seccomp's notifications: the kernel asks us before it does what a thread asks for, so that a kill at the n-th call is
at exactly that one, whichever thread makes it. (strace counts each thread for itself, and takes several times as long.)
"""

import ctypes
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

_CALLS: Final = (
    *("seccomp", "write", "pwrite64", "fsync", "fdatasync", "fcntl", "ftruncate", "unlink", "flock", "sendto"),
    "recvfrom",
)
_NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": dict(zip(_CALLS, (317, 1, 18, 74, 75, 72, 77, 87, 73, 44, 45), strict=True)),
    # 35 is unlinkat.
    "aarch64": dict(zip(_CALLS, (277, 64, 68, 82, 83, 25, 46, 35, 32, 206, 207), strict=True)),
}
_ARCHITECTURES: Final[Mapping[str, int]] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NO_NEW_PRIVILEGES: Final = 38
_SET_FILTER: Final = 1
_NEW_LISTENER: Final = 8
_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the filter's machine: load a word, jump if equal, return
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_SET_FLAGS: Final = 0x40082104
_SAME_PROCESSOR: Final = 1
_NOTICE: Final = struct.Struct("=QIIiIQ6Q")  # id, thread, flags, call, architecture, place, arguments
_ANSWER: Final = struct.Struct("=QqiI")  # id, value, error, flags
_LET_ON: Final = 1
_LOCKS: Final = (6, 7, 37, 38)
"""F_SETLK, F_SETLKW and the same of open file descriptions; the rest of ``fcntl`` changes nothing."""

NET_CALLS: Final = ("sendto", "recvfrom")
FILE_CALLS: Final = ("pwrite64", "fdatasync", "fsync", "fcntl", "write", "ftruncate", "unlink", "flock")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that a thread is about to make, the name of the file that it is for, and how many bytes."""

    name: str
    file: str
    size: int = 0


Counts = Callable[[Call], bool]  # tells if a call counts; asked once for each, in order
Fails = Callable[[int], int]  # the errno with which a call fails, by its number among those that count; 0 for none


def missing() -> str:
    """Return why there is no gate on this machine; nothing where there is one."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists():
        return "this system has no seccomp"
    if "user_notif" not in actions.read_text(encoding="ascii"):
        return "this kernel's seccomp does not notify"
    return "" if platform.machine() in _NUMBERS else f"the system calls of {platform.machine()} are not known here"


def enter(pipe: Connection, calls: tuple[str, ...]) -> None:
    """Stop at each of these calls from now on, in this thread and those that it starts; ``pipe`` leads to `guard`."""
    numbers = _NUMBERS[platform.machine()]
    program = compiled([numbers[name] for name in calls], _ARCHITECTURES[platform.machine()])
    kept = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    given = _Program(len(program) // 8, ctypes.addressof(kept))
    # Made before, and used without the pipe's own methods: they write, and nobody lets that on yet.
    with socket.socket(fileno=os.dup(pipe.fileno())) as way:
        listener = libc.syscall(numbers["seccomp"], _SET_FILTER, _NEW_LISTENER, ctypes.byref(given))
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp")
        socket.send_fds(way, [b"g"], [listener])
    os.close(listener)


def compiled(numbers: list[int], architecture: int) -> bytes:
    """Return the filter: notify of these calls of this architecture, allow the others."""
    last = len(numbers)
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 0, last + 1, architecture), (_LOAD, 0, 0, 0)]
    steps += [(_EQUAL, last - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def guard(
    pipe: Connection, pid: int, counts: Counts, *, kill_at: int, patience: float, fails: Fails = lambda _: 0
) -> list[Call]:
    """Let a process through its calls until it ends; kill it at one of them. Return those that counted, in order."""
    import fcntl  # not on Windows, where the filter can be read all the same

    with closing(socket.socket(fileno=os.dup(pipe.fileno()))) as way:
        way.settimeout(patience)
        _, descriptors, _, _ = socket.recv_fds(way, 1, 1)
    if not descriptors:
        return []  # it ended before
    (listener,) = descriptors
    names = {number: name for name, number in _NUMBERS[platform.machine()].items()}
    seen: list[Call] = []
    with suppress(OSError):  # before Linux 6.6; it halves the time
        fcntl.ioctl(listener, _SET_FLAGS, _SAME_PROCESSOR)
    try:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            ready = poll.poll(patience * 1000)
            if not ready:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"nothing for {patience:g} s after {seen[-1:]}")
            if ready[0][1] & select.POLLHUP:
                return seen
            buffer = bytearray(_NOTICE.size)
            try:
                fcntl.ioctl(listener, _RECEIVE, buffer)
            except OSError:
                continue  # whoever asked was killed, or stopped waiting
            notice, thread, _, number, _, _, first, second, third, *_ = _NOTICE.unpack(buffer)
            name, error = names[number], 0
            if name != "fcntl" or second in _LOCKS:
                call = Call(name, _file(thread, first) if name != "unlink" else "", third)
                if counts(call):
                    seen.append(call)
                    if len(seen) == kill_at:
                        os.kill(pid, signal.SIGKILL)
                        return seen
                    error = fails(len(seen))
            with suppress(OSError):
                fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(notice, 0, -error, 0 if error else _LET_ON)))
    finally:
        os.close(listener)


def _file(thread: int, descriptor: int) -> str:
    try:
        return Path(f"/proc/{thread}/fd/{descriptor}").readlink().name
    except OSError:
        return "?"
