"""Give tests of the command an empty folder, an empty environment and the command in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from letopis.outbox.cli import cli
from letopis.outbox.cli.interface.exit_codes import run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder, with nothing of Letopis in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("LETOPIS_") and not name.startswith("LETOPIS_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def letopis(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(cli, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call
