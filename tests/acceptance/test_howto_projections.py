"""The how-to pages on projections and rebuilding are right: their code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PAGES = ROOT / "docs" / "howto"


def test_the_code_runs(tmp_path: Path) -> None:
    said = []
    for name in ("projections.md", "rebuild.md"):
        (block,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / name).read_text(), re.MULTILINE | re.DOTALL)
        (tmp_path / "bot.py").write_text(block, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", "bot.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout)

    assert said == ["chat-1 5\n", ""]
