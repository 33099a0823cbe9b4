"""What is in deploy/ is what its pages promise: a unit that systemd takes, and an image that does not run as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.daemon.daemon import UNAVAILABLE_STOP_TIMEOUT_SECONDS, DaemonSettings
from letopis.outbox.diagnostics.check_sqlite import check_version
from letopis.outbox.diagnostics.finding import Level
from letopis.outbox.relay.relay import CANCEL_CLEANUP_SECONDS
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "letopis-relay.service"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@pytest.fixture
def service() -> dict[str, str]:
    # Some keys stand more than once (Environment=): the last is enough here.
    parser = ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def test_the_unit_speaks_the_protocol_that_the_daemon_speaks(service: dict[str, str]) -> None:
    assert service["Type"] == "notify-reload"
    assert service["RestartPreventExitStatus"] == str(int(Exit.CONFIGURATION))
    assert service["Restart"] == "on-failure"
    assert int(service["WatchdogSec"]) >= 30


def test_the_unit_leaves_time_for_a_stop_and_a_start(service: dict[str, str]) -> None:
    longest = DaemonSettings(outboxes=()).stop_timeout + UNAVAILABLE_STOP_TIMEOUT_SECONDS + 3 * CANCEL_CLEANUP_SECONDS

    assert float(service["TimeoutStopSec"]) > longest
    assert float(service["TimeoutStartSec"]) >= 30


def test_the_unit_confines_the_service_to_the_bots_folder(service: dict[str, str]) -> None:
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"] == service["WorkingDirectory"]
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["User"] not in ("root", "")
    assert "DynamicUser" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    # Neither the user nor the command is there on the machine of the test.
    for key, value in (("ExecStart", shutil.which("true") or "/bin/true"), ("User", "root"), ("Group", "root")):
        text = re.sub(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_is_not_built_on_an_sqlite_that_can_lose_pages() -> None:
    """Its build runs this line; here it passes or fails with the SQLite of this Python, as the doctor says."""
    (check,) = re.findall(r"^    '(from letopis.*)'$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)

    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)

    found = check_version()
    assert done.returncode == (0 if found.level is Level.OK else 1), done.stderr
    assert found.level is Level.OK or found.said in done.stderr


def test_the_image_runs_as_a_user_with_a_health_check() -> None:
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    last = "\n".join(lines)[-2000:].split("\nFROM ")[-1]

    assert re.search(r"^USER letopis$", last, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .*CMD \["letopis", "healthcheck"\]$', last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["letopis"\]$', last, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", last, re.MULTILINE)
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)=", last)
    assert not any(":latest" in line for line in lines)


def test_the_image_copies_what_a_build_needs() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    allowed = {
        line[1:]
        for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]}

    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
