"""Call functions in an event loop when the process receives a signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_signals(actions: Mapping[str, Callable[[], None]]) -> Iterator[None]:
    """Call functions in the event loop on signals, given by name, during a ``with`` block.

    Signals that the system does not have are left out.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def install(one: signal.Signals, action: Callable[[], None]) -> None:
        # Not loop.add_signal_handler: Windows has none.
        before[one] = signal.signal(one, lambda *_: loop.call_soon_threadsafe(action))

    for name, action in actions.items():
        if (one := getattr(signal, name, None)) is not None:
            install(one, action)
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)
