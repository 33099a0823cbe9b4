"""Skip tests whose server, program or package is missing, and fail those that LETOPIS_TEST_REQUIRE names.

Every such skip says `needs NAME: how to get it`; the variable lists names, separated by commas.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

import pytest

from tests.support.servers import Server, ServerUnavailable

S = TypeVar("S", bound=Server)
R = TypeVar("R", pytest.TestReport, pytest.CollectReport)

PATH: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_NEEDS: Final = re.compile(r"needs ([\w.-]+)")


def missing(name: str, reason: object) -> NoReturn:
    pytest.skip(f"needs {name}: {reason}")


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        missing(name, f"apt-get install {package}")
    return found


@contextmanager
def required(kind: str, find: Callable[..., S], **options: Any) -> Iterator[S]:
    """Give the server that a function finds, and end it afterwards if it was started for this."""
    try:
        server = find(**options)
    except ServerUnavailable as reason:
        missing(kind, reason)
    with server:
        yield server


def fail_if_required(report: R) -> R:
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2])
        needed = _NEEDS.search(reason)
        if needed is not None and needed[1] in os.environ.get("LETOPIS_TEST_REQUIRE", "").split(","):
            report.outcome = "failed"
            report.longrepr = f"{needed[1]} is required here: {reason}"
    return report
