"""What LETOPIS_TEST_REQUIRE names is no reason to skip a test."""

import pytest

from tests.support.required import fail_if_required, missing, program


def skipped(reason: str) -> pytest.TestReport:
    where = (__file__, 1, f"Skipped: {reason}")
    return pytest.TestReport("a", (__file__, 1, "a"), {}, "skipped", where, "setup")


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("needs mkfs.xfs: apt-get install xfsprogs", "failed"),
        ("needs chromium: apt-get install chromium", "skipped"),
        ("only SQLite has such values", "skipped"),
    ],
)
def test_required_tool_that_is_missing_fails_the_test(
    reason: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETOPIS_TEST_REQUIRE", "postgresql,mkfs.xfs")
    report = fail_if_required(skipped(reason))

    assert report.outcome == outcome
    assert (str(report.longrepr) == f"mkfs.xfs is required here: Skipped: {reason}") == (outcome == "failed")


def test_skip_names_what_it_needs() -> None:
    with pytest.raises(pytest.skip.Exception, match="needs no-such-program: apt-get install nothing"):
        program("no-such-program", "nothing")
    with pytest.raises(pytest.skip.Exception, match="needs mariadb: it does not answer"):
        missing("mariadb", "it does not answer")
