"""Charge each file with what its tests leave unclosed: it is collected at the file's end.

Otherwise the collector meets it in the middle of another file, and fails a test that has nothing to do with it. Under
``python -X dev`` the file fails for it; without, the run names it.
"""

import gc
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest


class Complaints(logging.Handler):
    """What objects say as they are collected: warnings of what was not closed, and tasks and futures of asyncio."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def collect(self) -> list[str]:
        hook, log = sys.unraisablehook, logging.getLogger("asyncio")
        sys.unraisablehook = self._raised
        log.addHandler(self)
        try:
            gc.collect()
        finally:
            sys.unraisablehook = hook
            log.removeHandler(self)
        gc.freeze()  # what outlives the file is no garbage: the next collection looks at what is new only
        return self.lines

    def _raised(self, raised: Any) -> None:  # typeshed names its type for annotations only
        self.lines.append(f"{type(raised.exc_value).__name__}: {raised.exc_value}, in {raised.object!r}")


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if left := Complaints().collect():
        what = "\n".join((f"{request.node.nodeid} leaves behind:", *left))
        if sys.flags.dev_mode:
            pytest.fail(what, pytrace=False)
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(what, file=sys.stderr, flush=True)
