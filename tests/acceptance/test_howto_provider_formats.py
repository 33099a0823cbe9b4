"""The how-to page on provider formats is right: its code runs and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from letopis.adapters import formats
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "howto" / "provider-formats.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")


def test_the_code_prints_what_the_page_says(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (said,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "bot.py").write_text(code, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", "bot.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == said


def test_every_format_is_in_the_guide_and_in_the_reference() -> None:
    (folder,) = formats.__path__
    names = sorted(path.stem for path in Path(folder).glob("[a-z]*.py"))

    assert names == ["anthropic", "gemini", "openai_chat", "openai_responses"]
    assert [name for name in names if f"| `{name}` |" not in PAGE] == []
    assert [name for name in names if f"letopis.adapters.formats.{name}\n" not in REFERENCE] == []
