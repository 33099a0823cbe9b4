"""What is in deploy/ is what its pages promise: systemd, Kubernetes, Compose, Grafana and Prometheus take it."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from letopis.ops.cli.interface.exit_codes import Exit
from letopis.ops.daemon.daemon import UNAVAILABLE_STOP_TIMEOUT_SECONDS, DaemonSettings
from letopis.ops.doctor.check_sqlite import check_version
from letopis.ops.doctor.finding import Severity
from letopis.outbox.relay.relay import CANCEL_CLEANUP_SECONDS
from letopis.store.model.messages import Message
from tests.support.child import ran
from tests.support.daemons import DaemonProcess, ask, until
from tests.support.fix_command import append_to
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "letopis-relay.service"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUBERNETES_VERSION = "1.31"
STOP_SECONDS = DaemonSettings(outboxes=()).stop_timeout + UNAVAILABLE_STOP_TIMEOUT_SECONDS + 3 * CANCEL_CLEANUP_SECONDS
"""The longest that a daemon takes to stop."""


def test_the_unit_speaks_as_the_daemon_does_and_confines_it_to_the_bots_folder() -> None:
    # Some keys stand more than once (Environment=): the last is enough here.
    parser = ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    service = dict(parser["Service"])
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
    assert done.returncode == (0 if found.level is Severity.OK else 1), done.stderr
    assert found.level is Severity.OK or found.said in done.stderr


def test_the_image_runs_as_a_user_with_a_health_check_and_copies_what_a_build_needs() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    last = re.sub(r"^#.*\n|^\n", "", text, flags=re.MULTILINE).split("\nFROM ")[-1]
    healthcheck = r'HEALTHCHECK .*CMD \["letopis", "healthcheck"\]'
    for wanted in ("USER letopis", healthcheck, r'ENTRYPOINT \["letopis"\]', "STOPSIGNAL SIGTERM"):
        assert re.search(f"^{wanted}$", last, re.MULTILINE), wanted
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)=", last)
    assert not re.search(r"^[^#].*:latest", text, re.MULTILINE)
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == set(re.findall(r"^!(.*)$", ignored, re.MULTILINE))
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


def test_the_outbox_outlives_its_pod_which_has_time_for_a_drain_and_a_stop() -> None:
    stateful, spec = _documents("bot.yaml")[0]["spec"], _pods()["bot"]
    (claim,), (relay,) = stateful["volumeClaimTemplates"], spec["initContainers"]
    drain = relay["lifecycle"]["preStop"]["exec"]["command"]

    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert stateful["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    for container in (relay, *spec["containers"]):
        assert {"name": claim["metadata"]["name"], "mountPath": "/var/lib/letopis"} in container["volumeMounts"]
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


# The dashboard and the alert rules.

DASHBOARD: Final = ROOT / "deploy" / "grafana" / "letopis.json"
RULES: Final = ROOT / "deploy" / "prometheus" / "letopis.rules.yml"
RULE_TESTS: Final = ROOT / "deploy" / "prometheus" / "letopis.rules.test.yml"
TARGET_LABELS: Final = {"job", "instance"}
"""Labels that Prometheus itself gives what it scrapes."""
BY_PROMETHEUS: Final = {"up"}
"""Metrics that Prometheus itself makes."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install promtool")

Exposed = Mapping[str, Mapping[str, set[str]]]
"""The values of each label of each series, by the names of the series."""


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    folder = tmp_path_factory.mktemp("relay")
    asyncio.run(append_to(folder / "bot.outbox.db", "c1", Message.user("hi")))
    with DaemonProcess("--listen", "0", folder=folder) as daemon:
        port = daemon.works().port()
        until(lambda: "delivered_events_total 2.0" in ask(port, "/metrics")[1], "a delivery")
        status, text = ask(port, "/metrics")
    assert status == 200
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def unknown(expression: str, exposed: Exposed) -> list[str]:
    found: list[str] = []
    matchers = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
    for name, selector in re.findall(r"\b((?:letopis|process)_\w+|up)\b(?:\{([^}]*)\})?", expression):
        if name in BY_PROMETHEUS:
            continue
        if name not in exposed:
            found.append(name)
            continue
        for label, operator, value in matchers.findall(selector):
            if label in TARGET_LABELS:
                continue
            values = value.split("|") if "~" in operator else [value]
            found += [f"{name}{{{label}={one}}}" for one in values if one not in exposed[name].get(label, set())]
    labels = {label for one in exposed.values() for label in one} | TARGET_LABELS
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        found += [f"by ({label})" for label in map(str.strip, group.split(",")) if label not in labels]
    return found


def dashboard_expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    queries = [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    metrics = [found.group(1) for one in queries if (found := re.match(r"label_values\((.*), \w+\)", one))]
    assert len(metrics) == len(queries) > 0
    return [*metrics, *(target["expr"] for panel in panels for target in panel["targets"])]


def rule_expressions() -> list[str]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found = [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(found) > 5
    return found


def test_the_dashboard_and_the_rules_watch_metrics_that_a_relay_exposes(exposed: Exposed) -> None:
    expressions = [*dashboard_expressions(), *rule_expressions()]
    assert len(expressions) > 25
    assert [one for expression in expressions for one in unknown(expression, exposed)] == []
    # A metric that is added is looked at; batches and the last progress are for questions, not for a glance.
    names = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("letopis_")}
    asides = {"letopis_relay_batches_total", "letopis_relay_last_progress_timestamp_seconds"}
    used = " ".join(expressions)
    assert sorted(name for name in names - asides if name not in used) == []


def test_a_wrong_name_would_be_noticed(exposed: Exposed) -> None:
    for expression, found in (
        ("rate(letopis_relay_delivered_total[5m])", "letopis_relay_delivered_total"),
        ('letopis_outbox_lanes{state="stuck"}', "letopis_outbox_lanes{state=stuck}"),
        ('letopis_outbox_files{state=~"unusable|gone"}', "letopis_outbox_files{state=gone}"),
        ("sum by (store) (letopis_outbox_lanes)", "by (store)"),
    ):
        assert unknown(expression, exposed) == [found]


@needs_promtool
def test_promtool_takes_the_rules_and_their_tests() -> None:
    for arguments in (["check", "rules", RULES.name], ["test", "rules", RULE_TESTS.name]):
        done = ran("promtool", *arguments, cwd=RULES.parent)

        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


@needs_promtool
def test_promtool_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [
        re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(job|instance)", ".*", one)) for one in dashboard_expressions()
    ]
    rules = [{"record": f"panel:number{number}", "expr": one} for number, one in enumerate(expressions)]
    # JSON is YAML.
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))

    done = ran("promtool", "check", "rules", "panels.yml", cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(expressions)} rules found" in done.stdout


@needs_promtool
def test_every_alert_has_a_test_in_which_it_fires() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")))
    tests = RULE_TESTS.read_text(encoding="utf-8")
    fires = set(re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- exp_labels", tests))
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", tests))

    assert fires == alerts
    assert silent == alerts
