"""The dashboard and the alert rules in deploy/ speak of metrics, labels and values that a real relay exposes."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from letopis.store.model.messages import Message
from tests.support.child import ran
from tests.support.daemons import DaemonProcess, ask, until
from tests.support.fix_command import append_to
from tests.support.paths import ROOT

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


def panels() -> Iterator[Mapping[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] != "row":
            yield panel


def dashboard_expressions() -> list[str]:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    metrics = [found.group(1) for one in queries if (found := re.match(r"label_values\((.*), \w+\)", one))]
    assert len(metrics) == len(queries) > 0
    return [*metrics, *(target["expr"] for panel in panels() for target in panel["targets"])]


def rule_expressions() -> list[str]:
    """The expressions of the rules, which stand on one line each: no YAML parser is among the dependencies."""
    text = RULES.read_text(encoding="utf-8")
    found = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
    assert len(found) == text.count("- alert: ") > 5
    return found


def test_the_dashboard_shows_metrics_that_a_relay_exposes(exposed: Exposed) -> None:
    expressions = dashboard_expressions()

    assert len(expressions) > 20
    assert [one for expression in expressions for one in unknown(expression, exposed)] == []


def test_the_rules_watch_metrics_that_a_relay_exposes(exposed: Exposed) -> None:
    assert [one for expression in rule_expressions() for one in unknown(expression, exposed)] == []


def test_a_wrong_name_would_be_noticed(exposed: Exposed) -> None:
    assert unknown("rate(letopis_relay_delivered_total[5m])", exposed) == ["letopis_relay_delivered_total"]
    assert unknown('letopis_outbox_lanes{state="stuck"}', exposed) == ["letopis_outbox_lanes{state=stuck}"]
    assert unknown('letopis_outbox_files{state=~"unusable|gone"}', exposed) == ["letopis_outbox_files{state=gone}"]
    assert unknown("sum by (store) (letopis_outbox_lanes)", exposed) == ["by (store)"]


def test_the_dashboard_has_a_panel_for_each_metric(exposed: Exposed) -> None:
    """So that a metric that is added is looked at, here or by an alert."""
    used = " ".join([*dashboard_expressions(), *rule_expressions()])
    names = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("letopis_")}
    # Batches and the time of the last progress are for questions, not for a glance.
    asides = {"letopis_relay_batches_total", "letopis_relay_last_progress_timestamp_seconds"}

    assert sorted(name for name in names - asides if name not in used) == []


def test_the_panels_have_titles_ids_and_places_of_their_own() -> None:
    found = list(panels())
    cells = [
        (x, y)
        for panel in found
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in found}) == len(found)
    assert len({panel["title"] for panel in found}) == len(found)
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)


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
