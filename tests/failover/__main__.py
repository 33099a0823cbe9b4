"""Fail over under load, with clusters from packages: PostgreSQL under Patroni and etcd, and MariaDB Galera.

It ends within ten minutes. What cannot be run on a machine is skipped, with what to install. Exits with 0 if nothing
was lost, doubled or out of order, and each control failed as it has to.
"""

import argparse
import logging
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

from tests.failover import controls, scenarios
from tests.proof.__main__ import conclude, prove_here
from tests.proof.page import published
from tests.support.reports import ROOT, refusal, report_of, write
from tests.support.servers.postgresql import find_binaries

LIMIT_SECONDS: Final = 590  # should the limits of the parts not do
PUBLISHED: Final = ROOT / "docs" / "howto" / "replicated-store.md"
BEGIN: Final = "<!-- figures: made by `python -m tests.failover --publish`, not by hand -->"
PARTS: Final = {"controls": controls.prove, "galera": scenarios.galera, "patroni": scenarios.patroni}
SEED: Final = 20261129


def version_of(program: str | Path) -> str:
    if shutil.which(program) is None:
        return "none"
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return "".join(re.findall(r"[\d.]+", shown)[:1])


def main() -> int:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.failover", description=__doc__, formatter_class=how)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--short", action="store_true", help="one scenario of each kind")
    parser.add_argument("--publish", action="store_true", help=f"write what held into {PUBLISHED.relative_to(ROOT)}")
    given = parser.parse_args()
    if given.publish and given.short:
        parser.error("what is published is not short")
    if given.publish and (reason := refusal()):
        parser.error(reason)
    logging.disable()
    # As Ctrl-C does it: every cluster is ended on the way out.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(LIMIT_SECONDS)
    parts = [prove_here(name, short=given.short, seed=SEED, work=PARTS[name]) for name in given.part]
    programs: dict[str, str | Path] = {"PostgreSQL": find_binaries() / "postgres", "Patroni": "patroni", "etcd": "etcd"}
    versions = {"Linux": platform.release(), **{name: version_of(program) for name, program in programs.items()}}
    report = report_of(parts, versions=versions, seed=SEED, short=given.short)
    if given.publish:
        page = published(report, PUBLISHED.read_text(encoding="utf-8"), begin=BEGIN)
        PUBLISHED.write_text(page, encoding="utf-8")
    return conclude(report, write(report, ROOT / "build" / "failover", "failover"))


if __name__ == "__main__":
    raise SystemExit(main())
