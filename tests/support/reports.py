"""Write the reports of the proof and of the benchmark: what they were made on, their JSON, and their tables."""

import json
import os
import platform
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.support.servers import MariaDBServer, PostgresServer

ROOT: Final = Path(__file__).parent.parent.parent
WRITTEN: Final = (
    "docs/explanation/beyond-one-machine.md",
    "docs/explanation/proof.md",
    "docs/explanation/speed.md",
    "docs/explanation/tables/proof.md",
    "docs/explanation/tables/speed.md",
    "docs/howto/replicated-store.md",
    "tests/proof/totals.json",
)
"""What published runs write: several may be published before they are committed, since no run reads these."""


def commit() -> str:
    """Return the commit that a run is of, with ``-dirty`` if tracked files were changed since."""
    described = _git("describe", "--always").strip() or "unknown"
    return f"{described}-dirty" if _changed() else described


def refusal() -> str:
    """Return why a run may not be published, empty if it may: others can check out commits alone."""
    if changed := _changed():
        return f"only what runs on a commit is published: commit or stash {', '.join(changed)} first"
    return "only what runs on a commit is published: git knows none here" if commit() == "unknown" else ""


def _changed() -> list[str]:
    return _git("diff", "--name-only", "HEAD", "--", ".", *(f":(exclude){name}" for name in WRITTEN)).splitlines()


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def report_of(parts: Sequence[Mapping[str, Any]], *, versions: Mapping[str, str], **how: Any) -> dict[str, Any]:
    common = {
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": PostgresServer.describe(),
        "MariaDB": MariaDBServer.describe(),
    }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        **how,
        "machine": {"processors": os.cpu_count(), "versions": {**common, **versions}},
        "parts": parts,
    }


def write(report: Mapping[str, Any], folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def made_on(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['processors']} processors; {versions}"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(map(_cell, cells))} |"

    return [line(columns), f"|{'|'.join(columns.values())}|", *map(line, rows)]


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")
