"""Start a server process that dies with us, and wait until it answers or has died."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class ServerUnavailable(Exception):
    """No server answers and none can be started; the message says why."""


# The kernel sends the parent-death signal when the *thread* that started the child ends, so every server is started
# by this one thread, which lives as long as the process. A caller may then restart a server from a worker thread.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def spawn(command: Sequence[str], *, log: Path, death_signal: str, user: str | None = None) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output into `log`; it gets `death_signal` when we die.

    Without ``setpriv`` (not Linux) the server outlives a killed parent.
    """
    setpriv = shutil.which("setpriv")
    full = [setpriv, "--pdeathsig", death_signal, *command] if setpriv else list(command)

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen(
                full,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                user=user,
                # Ctrl-C at the terminal is for the test run, not for its servers.
                start_new_session=True,
            )

    return _starter.submit(start).result()


def prepared(command: Sequence[str | Path], *, user: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, user=user, check=False)
    if done.returncode:
        raise ServerUnavailable(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def wait_until_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], *, log: Path, timeout: float = 60.0
) -> None:
    """Return once `ready` is true; ServerUnavailable with the end of the log if it dies or takes `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            how = f"did not answer in {timeout:g} s" if process.returncode is None else f"ended: {process.returncode}"
            said = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else ["(no log)"]
            raise ServerUnavailable("\n".join((f"the server {how}:", *said)))
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes], how: signal.Signals, *, timeout: float = 30.0) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)
