"""Record ``letopis demo``: its output in the READMEs, and a picture of it for the documentation.

``python -m tests.support.demo_transcript`` plays the demonstration and renews all three.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from tests.support.child import ran
from tests.support.paths import ROOT

PAGES: Final = (ROOT / "README.md", ROOT / "README.ru.md")
PICTURE: Final = ROOT / "docs" / "_static" / "demo.svg"
PROMPT: Final = "$ letopis demo"
COLUMNS: Final = 88
PICTURE_COLUMNS: Final = 66  # so that it can be read on a phone

_TRANSCRIPT = re.compile(r"(?<=<!-- transcript: letopis demo -->\n```text\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
_VARIES = re.compile(r"\d+\.\d+|\d+(?= s\.)")


def folded(text: str, columns: int) -> str:
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(line.strip(), columns, initial_indent=indent, subsequent_indent=f"{indent}  ") or [""]
    return "\n".join(lines) + "\n"


def comparable(text: str) -> str:
    """Return the words of a transcript, without what differs from run to run: times and where lines end."""
    return _VARIES.sub("N", " ".join(text.split()))


def transcript_of(page: Path) -> str:
    found: str = _TRANSCRIPT.findall(page.read_text(encoding="utf-8"))[0]
    return found.removeprefix(f"{PROMPT}\n")


def picture(transcript: str) -> str:
    lines = [PROMPT, *folded(transcript, PICTURE_COLUMNS).splitlines()]
    width, height = PICTURE_COLUMNS * 8.43 + 40, len(lines) * 20 + 62
    rows = []
    for number, line in enumerate(lines):
        kind = "typed" if number == 0 else "detail" if line.startswith(" ") or not line else "step"
        rows.append(f'<text class="{kind}" x="20" y="{number * 20 + 60}" xml:space="preserve">{escape(line)}</text>')
    dots = "".join(f'<circle cx="{24 + 20 * n}" cy="20" r="6" fill="#55606e"/>' for n in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">\n'
        "<title>The output of letopis demo</title>\n"
        "<style>text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d7dde4; }"
        " .step { fill: #ffffff; font-weight: 700; } .typed { fill: #8fd19e; }</style>\n"
        f'<rect width="100%" height="100%" rx="10" fill="#1b222b"/>\n{dots}\n' + "\n".join(rows) + "\n</svg>\n"
    )


def play(folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    words, environ = [sys.executable, "-m", "letopis.ops.cli", "demo"], {**os.environ, "PYTHONUTF8": "1"}
    return ran(*words, encoding="utf-8", timeout=90, cwd=folder, env=environ)


def main() -> None:
    played = play()
    played.check_returncode()
    shown = folded(played.stdout, COLUMNS)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(_TRANSCRIPT.sub(lambda _: f"{PROMPT}\n{shown}", text, count=1), encoding="utf-8")
    PICTURE.write_text(picture(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
