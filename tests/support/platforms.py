"""Skip a test on a platform that cannot run it, and say where to run it."""

import os
import sys

import pytest


def posix_only(why: str) -> pytest.MarkDecorator:
    """Skip the test on Windows."""
    return pytest.mark.skipif(os.name == "nt", reason=f"{why}: run it on Linux or macOS")


def linux_only(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(sys.platform != "linux", reason=f"{why}: run it on Linux")
