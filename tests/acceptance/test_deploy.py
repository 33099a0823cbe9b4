"""What is in deploy/ is what its pages promise: systemd, Kubernetes and Compose take it, and nothing runs as root."""

from __future__ import annotations

import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from letopis.outbox.cli.interface.exit_codes import Exit
from letopis.outbox.daemon.daemon import UNAVAILABLE_STOP_TIMEOUT_SECONDS, DaemonSettings
from letopis.outbox.diagnostics.check_sqlite import check_version
from letopis.outbox.diagnostics.finding import Level
from letopis.outbox.relay.relay import CANCEL_CLEANUP_SECONDS
from tests.support.child import ran
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "letopis-relay.service"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUBERNETES_VERSION = "1.31"
STOP_SECONDS = DaemonSettings(outboxes=()).stop_timeout + UNAVAILABLE_STOP_TIMEOUT_SECONDS + 3 * CANCEL_CLEANUP_SECONDS
"""The longest that a daemon takes to stop."""


@pytest.fixture
def service() -> dict[str, str]:
    # Some keys stand more than once (Environment=): the last is enough here.
    parser = ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def test_the_unit_speaks_as_the_daemon_does_and_confines_it_to_the_bots_folder(service: dict[str, str]) -> None:
    expected = {"Type": "notify-reload", "Restart": "on-failure", "ProtectSystem": "strict", "NoNewPrivileges": "yes"}
    expected |= {"CapabilityBoundingSet": "", "ReadWritePaths": service["WorkingDirectory"]}
    expected["RestartPreventExitStatus"] = str(int(Exit.CONFIGURATION))

    assert expected.items() <= service.items()
    assert min(int(service[name]) for name in ("WatchdogSec", "TimeoutStartSec")) >= 30
    assert float(service["TimeoutStopSec"]) > STOP_SECONDS
    assert service["User"] not in ("root", "")
    assert "DynamicUser" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    # Neither the user nor the command is there on the machine of the test.
    for key, value in (("ExecStart", shutil.which("true") or "/bin/true"), ("User", "root"), ("Group", "root")):
        text = re.sub(rf"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(text)

    done = ran("systemd-analyze", "verify", tmp_path / UNIT.name)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_is_not_built_on_an_sqlite_that_can_lose_pages() -> None:
    """Its build runs this line; here it passes or fails with the SQLite of this Python, as the doctor says."""
    (check,) = re.findall(r"^    '(from letopis.*)'$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)

    done = ran(sys.executable, "-c", check)

    found = check_version()
    assert done.returncode == (0 if found.level is Level.OK else 1), done.stderr
    assert found.level is Level.OK or found.said in done.stderr


def test_the_image_runs_as_a_user_with_a_health_check() -> None:
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    last = "\n".join(lines)[-2000:].split("\nFROM ")[-1]

    healthcheck = r'HEALTHCHECK .*CMD \["letopis", "healthcheck"\]'
    for wanted in ("USER letopis", healthcheck, r'ENTRYPOINT \["letopis"\]', "STOPSIGNAL SIGTERM"):
        assert re.search(f"^{wanted}$", last, re.MULTILINE), wanted
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)=", last)
    assert not any(":latest" in line for line in lines)


def test_the_image_copies_what_a_build_needs() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text()
    allowed = set(re.findall(r"^!(.*)$", ignored, re.MULTILINE))
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]}

    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


# Kubernetes and Compose.


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8")))


def _pods() -> dict[str, dict[str, Any]]:
    return {
        "bot": _documents("bot.yaml")[0]["spec"]["template"]["spec"],
        "migrate": _documents("migrate.yaml")[0]["spec"]["template"]["spec"],
    }


@pytest.mark.parametrize("name", ["bot.yaml", "migrate.yaml", "network-policy.yaml"])
def test_kubernetes_takes_the_manifests(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: requirements/dev.txt")

    for document in _documents(name):
        validate.validate(document, KUBERNETES_VERSION, strict=True)
        with pytest.raises(validate.ValidationError):
            validate.validate({**document, "spec": {"replicas": "many"}}, KUBERNETES_VERSION, strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    (found,) = _documents("kustomization.yaml")

    assert sorted(found["resources"]) == sorted({one.name for one in KUBERNETES.iterdir()} - {"kustomization.yaml"})


@pytest.mark.parametrize("pod", ["bot", "migrate"])
def test_no_container_of_the_manifests_is_root_or_writes_its_image(pod: str) -> None:
    spec = _pods()[pod]
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    (uid,) = re.findall(r"^ARG UID=(\d+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert {spec["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(uid)}
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "cpu" not in container["resources"]["limits"]


def test_the_outbox_outlives_its_pod() -> None:
    stateful = _documents("bot.yaml")[0]["spec"]
    (claim,) = stateful["volumeClaimTemplates"]
    spec = _pods()["bot"]

    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert stateful["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert {"name": claim["metadata"]["name"], "mountPath": "/var/lib/letopis"} in container["volumeMounts"]


def test_the_pod_leaves_time_for_a_drain_and_a_stop() -> None:
    spec = _pods()["bot"]
    (relay,) = spec["initContainers"]
    drain = relay["lifecycle"]["preStop"]["exec"]["command"]

    assert relay["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] > int(drain[drain.index("--drain") + 1]) + STOP_SECONDS


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("vendor.compose-spec", "deploy/compose.yaml"), ("vendor.github-workflows", ".github/workflows/*.yml")],
)
def test_compose_and_workflows_are_what_their_schemas_say(schema: str, pattern: str, tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="needs check-jsonschema: requirements/dev.txt")
    files = sorted(ROOT.glob(pattern))
    broken = tmp_path / "broken.yml"
    broken.write_text("services: {bot: {image: 1}}\njobs: {}\n")

    def check(*paths: Path) -> int:
        return ran(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *paths).returncode

    assert files
    assert check(*files) == 0
    assert check(broken) == 1


def test_compose_keeps_the_outbox_and_lets_only_this_machine_in() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    relay, bot = compose["services"]["relay"], compose["services"]["bot"]

    assert "outbox:/var/lib/letopis" in relay["volumes"]
    assert "outbox:/var/lib/letopis" in bot["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in relay["ports"])
    assert "--console" in relay["command"]
