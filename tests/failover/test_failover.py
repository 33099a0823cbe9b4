"""The command's own rules, with no server: what is skipped and why, and what is a violation."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from letopis.outbox.relay.outcome import RelayStats
from tests.failover import __main__ as command
from tests.failover.__main__ import BEGIN, PARTS, PUBLISHED
from tests.proof.network.bots import Bot, strange
from tests.proof.options import Options
from tests.proof.page import TITLES, published
from tests.proof.rows import Row
from tests.proof.test_rows import report


@pytest.mark.parametrize(
    ("name", "packages"), [("patroni", "patroni etcd-server"), ("galera", "mariadb-server rsync galera-4")]
)
def test_a_machine_without_the_packages_skips_and_says_what_to_install(
    name: str, packages: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "FOLDERS", str(tmp_path))

    (row,) = PARTS[name](Options(short=True, seed=1, folder=tmp_path))

    assert row.missing == f"apt-get install {packages}"
    assert row.ok(short=False)


def test_the_page_takes_the_tables_of_each_part() -> None:
    assert PARTS.keys() <= TITLES.keys()
    row = Row(what="switchover", where="three nodes", count=2, unit="faults")
    parts = [one for name in PARTS for one in report(name, row)["parts"]]

    page = published(report("controls") | {"parts": parts}, PUBLISHED.read_text(encoding="utf-8"), begin=BEGIN)

    assert page.count("| switchover | three nodes | 2 faults | 0 |  |") == len(PARTS)


def test_events_that_are_sent_again_are_a_violation() -> None:
    """Outboxes retain everything here, so that a loss would be repaired before it is looked for."""
    stats = RelayStats(rewound=3)
    bot = cast(Bot, SimpleNamespace(relay=SimpleNamespace(stats=stats)))

    assert strange([bot]) == ["3 events were sent again because the store had lost them"]
