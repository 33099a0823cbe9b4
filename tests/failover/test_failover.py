"""The command's own rules, with no server: what is skipped and why, and what is a violation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from letopis.outbox.relay.outcome import RelayStats
from tests.failover import scenarios
from tests.failover.__main__ import BEGIN, PARTS, PUBLISHED
from tests.failover.load import span, strange
from tests.proof.network.bots import Bot
from tests.proof.options import Options
from tests.proof.page import TITLES, published
from tests.proof.rows import Row


@pytest.mark.parametrize(
    ("name", "packages"),
    [("patroni", "patroni etcd-server"), ("galera", "mariadb-server rsync galera-4")],
)
def test_a_machine_without_the_packages_skips_and_says_what_to_install(
    name: str, packages: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenarios, "FOLDERS", str(tmp_path))

    (row,) = PARTS[name](Options(short=True, seed=1, folder=tmp_path))

    assert row.missing == f"apt-get install {packages}"
    assert row.ok(short=False)


def test_the_page_takes_the_tables_of_each_part() -> None:
    assert PARTS.keys() <= TITLES.keys()
    report: dict[str, Any] = {"date": "2026-11-29", "commit": "abc", "seed": 7, "short": False}
    report["machine"] = {"processors": 2, "versions": {"SQLite": "3"}}
    rows = [Row(what="switchover", where="three nodes", count=2, unit="faults").to_json()]
    report["parts"] = [{"part": name, "seconds": 1.0, "failed": "", "rows": rows} for name in PARTS]

    page = published(report, PUBLISHED.read_text(encoding="utf-8"), begin=BEGIN)

    assert page.count("| switchover | three nodes | 2 faults | 0 |  |") == len(PARTS)


def test_events_that_are_sent_again_are_a_violation() -> None:
    """Outboxes retain everything here, so that a loss would be repaired before it is looked for."""
    stats = RelayStats(rewound=3)
    bot = cast(Bot, SimpleNamespace(relay=SimpleNamespace(stats=stats)))

    assert strange([bot]) == ["3 events were sent again because the store had lost them"]


def test_seconds_of_several_faults_are_a_span() -> None:
    assert (span([2.04]), span([5.0, 1.26]), span([])) == ("2.0 s", "1.3 to 5.0 s", "0.0 s")
