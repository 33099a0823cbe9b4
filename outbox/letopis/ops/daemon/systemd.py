"""Notify systemd of the daemon's state, and call functions on signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

WATCHDOG_SHARE: Final = 0.5  # share of WatchdogSec after which the next ping is due, as sd_watchdog_enabled(3) advises


class Notifier:
    """Sends notifications to the service manager; does nothing without one (no ``NOTIFY_SOCKET``).

    Raises nothing: a missing listener must not end a daemon.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        values = os.environ if environment is None else environment
        self._address = values.get("NOTIFY_SOCKET", "")
        microseconds = values.get("WATCHDOG_USEC", "")
        meant_for_us = values.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_interval: float | None = (
            int(microseconds) / 1_000_000 * WATCHDOG_SHARE if meant_for_us and microseconds.isdigit() else None
        )
        """Seconds between pings; ``None`` if no watchdog is set."""

    @property
    def listening(self) -> bool:
        return bool(self._address)

    def ready(self) -> None:
        """Report that start-up, or a reload, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that the configuration is being reloaded; end with :meth:`ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``; one line."""
        self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        """Feed the watchdog. Call it only after checking that work progresses."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ is the manager's spelling of the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        family = getattr(socket, "AF_UNIX", None)
        if family is None:  # a system without such sockets has no systemd either
            return
        with socket.socket(family, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as client:
            try:
                client.sendto(message.encode(), address)
            except OSError:
                # The manager is gone or restarting; it needs only the next message.
                return


@contextmanager
def on_signals(actions: Mapping[str, Callable[[], None]]) -> Iterator[None]:
    """Call functions in the event loop on signals, given by name, during a ``with`` block."""
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def install(number: signal.Signals, action: Callable[[], None]) -> None:
        # Not loop.add_signal_handler: Windows has none.
        before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(action))

    for name, action in actions.items():
        if (number := getattr(signal, name, None)) is not None:
            install(number, action)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
