"""The how-to page on LangGraph is right, and the adapter says what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "howto" / "langgraph.md").read_text(encoding="utf-8")


def run(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "bot.py").write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-W", "error", "bot.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )


def test_the_code_prints_what_the_page_says(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.graph", reason="needs langgraph: pip install --group adapters")
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (said,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

    done = run(code, tmp_path)

    # An old release warns of what is deprecated in itself, and quotes the line.
    lines = done.stderr.splitlines()
    others = [line for line in lines if "DeprecationWarning" not in line and not line.startswith("  ")]
    assert (done.returncode, others) == (0, [])
    assert done.stdout == said


def test_without_the_framework_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = "import sys\nsys.modules['langgraph'] = None\n"

    done = run(hidden + "import letopis.adapters.langgraph", tmp_path)

    assert done.returncode != 0
    assert "pip install 'letopis[langgraph]'" in done.stderr.splitlines()[-1]


def test_nobody_else_imports_the_framework(tmp_path: Path) -> None:
    code = (
        "import sys, letopis, letopis.store, letopis.outbox, letopis.adapters\n"
        "from letopis import History\nHistory('bot.outbox.db')\n"
        "print(sorted(name for name in sys.modules if name.startswith(('langgraph', 'langchain'))))"
    )

    assert run(code, tmp_path).stdout == "[]\n"
