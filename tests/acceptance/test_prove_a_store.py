"""The published conformance tests work from outside: a sound store passes, and a defective one fails where it must."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.child import ran
from tests.support.pages import programs
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "howto" / "prove-a-store.md"

FORGETFUL = '''
from dataclasses import replace

import pytest

from letopis.store import ConversationStore, Event
from letopis.store.model.codec import encode
from letopis.store.model.identifiers import uuid7
from letopis.store.testing import DeliveryConformance


class ForgetfulStore(ConversationStore):
    """Takes every event for a new one: it forgets which ids it has, and how far a lane was delivered."""

    async def apply(self, origin, batch):
        def renamed(delivery):
            return replace(delivery, event=replace(delivery.event, event_id=uuid7()))

        fresh = [replace(lane, deliveries=tuple(map(renamed, lane.deliveries))) for lane in batch]
        return await super().apply(replace(origin, origin_id=uuid7()), fresh)


class TestForgetfulStore(DeliveryConformance):
    @pytest.fixture
    async def store(self, tmp_path):
        async with ForgetfulStore.open(tmp_path / "history.db") as opened:
            yield opened
'''


def run(folder: Path, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as its user would: in a folder of its own, with no configuration of ours."""
    (folder / "test_mine.py").write_text(source, encoding="utf-8")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, "test_mine.py")
    return ran(*command, cwd=folder, timeout=280)


@pytest.mark.slow
def test_the_store_of_the_guide_passes(tmp_path: Path) -> None:
    [block, _] = programs(PAGE)

    done = run(tmp_path, block, "-rs")

    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 140, done.stdout
    assert "does not declare the capability STATISTICS" in done.stdout
    assert "does not declare the capability FORKS" not in done.stdout


def test_a_store_that_forgets_duplicates_fails_there_and_nowhere_else(tmp_path: Path) -> None:
    fails = [
        "a_whole_lane_delivered_again",
        "an_event_twice_in_one_delivery",
        "one_event_through_two_outboxes",
        "lane_heads",
    ]
    passes = ["an_empty_batch", "a_batch_must_not_name_a_lane_twice"]

    done = run(tmp_path, FORGETFUL, "-rA", "-k", " or ".join((*fails, *passes)))

    assert (done.returncode, "assert" in done.stdout) == (1, True), done.stdout
    failed = re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    passed = re.findall(r"^PASSED \S+::(\w+)$", done.stdout, re.MULTILINE)
    assert all(any(part in name for name in failed) for part in fails), done.stdout
    assert all(any(part in name for part in fails) for name in failed), done.stdout
    assert sum(any(part in name for part in passes) for name in passed) == 2
