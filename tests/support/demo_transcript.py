"""Record ``letopis demo``: a picture of its output, for the READMEs and the documentation.

``python -m tests.support.demo_transcript`` plays the demonstration and renews it.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, unescape

from tests.support.child import ran
from tests.support.paths import ROOT

PICTURE: Final = ROOT / "docs" / "_static" / "demo.svg"
PROMPT: Final = "$ letopis demo"
COLUMNS: Final = 66  # so that it can be read on a phone

_LINE = re.compile(r"<text [^>]*>(.*?)</text>")
_VARIES = re.compile(r"\d+\.\d+|\d+(?= s\.)")


def folded(text: str) -> str:
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(line.strip(), COLUMNS, initial_indent=indent, subsequent_indent=f"{indent}  ") or [""]
    return "\n".join(lines) + "\n"


def comparable(text: str) -> str:
    """Return the words of a transcript, without what differs from run to run: times and where lines end."""
    return _VARIES.sub("N", " ".join(text.split()))


def shown() -> str:
    """Return the text of the picture, below its prompt."""
    prompt, *lines = _LINE.findall(PICTURE.read_text(encoding="utf-8"))
    assert prompt == PROMPT
    return unescape("\n".join(lines))


def picture(transcript: str) -> str:
    lines = [PROMPT, *folded(transcript).splitlines()]
    width, height = COLUMNS * 8.43 + 40, len(lines) * 20 + 62
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
    PICTURE.write_text(picture(played.stdout), encoding="utf-8")


if __name__ == "__main__":
    main()
