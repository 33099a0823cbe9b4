"""CI runs the actions that were reviewed: each is pinned by a commit, since a tag can be moved."""

import re

from tests.support.paths import ROOT

PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def unpinned(workflow: str) -> list[str]:
    """Return the actions that are named by anything but a commit, with its version beside it."""
    return [use for use in re.findall(r"\buses:[ \t]*(.*)", workflow) if not PINNED.fullmatch(use.strip())]


def test_every_action_is_pinned_by_a_commit() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github").rglob("*.y*ml")}

    assert sum(text.count("uses:") for text in texts.values()) > 10
    assert {name: found for name, text in texts.items() if (found := unpinned(text))} == {}


def test_the_rule_finds_what_is_planted() -> None:
    commit = "fbc6f3992d24b796d5a048ff273f7fcc4a7b6c09"

    assert unpinned(f"- uses: a/b@v5\n- uses: a/b@{commit[:7]} # v5.1.0\n- uses: a/b@{commit}\n- uses: a/b\n") == [
        *("a/b@v5", f"a/b@{commit[:7]} # v5.1.0", f"a/b@{commit}", "a/b")
    ]
    assert not unpinned(f"- uses: a/b@{commit} # v5.1.0\n")
