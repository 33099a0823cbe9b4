"""The guide to event loops and threads: every block runs, and says what it is said to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "howto" / "event-loops-and-threads.md"


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    """One after the other in one folder and one process, which is quicker than a process each."""
    names = []
    page = PAGE.read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL), start=1):
        names.append(f"block{number}.py")
        (tmp_path / names[-1]).write_text(block, encoding="utf-8")
    run = "import runpy, sys\nfor name in sys.argv[1:]:\n    runpy.run_path(name)\n    print('---')"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", run, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.split("---\n") == [
        "['What is tea?']\n",
        "3\n",
        "['first run', 'second run']\n",
        "True\n",
        "1 True\n",
        "1\n",
        "",
    ]
