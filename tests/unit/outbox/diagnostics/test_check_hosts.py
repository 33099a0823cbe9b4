"""What the doctor says of each host of a URL that names several."""

import pytest

from letopis.outbox.diagnostics.check_hosts import Host, judge_hosts
from letopis.outbox.diagnostics.finding import Level

HERE, THERE = frozenset({"10.0.0.2"}), frozenset({"10.0.0.3"})
PRIMARY = frozenset({"10.0.0.1"})


def said(**hosts: tuple[Host, frozenset[str]]) -> dict[str, tuple[Level, str]]:
    findings = judge_hosts(hosts)
    assert all(finding.check == "store_hosts" for finding in findings)
    return {finding.said.partition(" ")[0].rstrip(","): (finding.level, finding.said) for finding in findings}


def test_each_standby_of_a_primary_is_synchronous_or_not() -> None:
    primary = Host(names="'a'", standbys=(("10.0.0.2", "sync"), ("10.0.0.3", "async")))
    found = said(p=(primary, PRIMARY), a=(Host(standby=True), HERE), b=(Host(standby=True), THERE))
    assert found["p"][0] is Level.OK
    assert "primary" in found["p"][1]
    assert found["a"] == (Level.OK, "a, standby, synchronous")
    assert found["b"] == (Level.WARN, "b, standby, asynchronous")


@pytest.mark.parametrize(
    ("standbys", "expected"),
    [
        ((("127.0.0.1", "quorum"),), "standby, synchronous"),
        ((("127.0.0.1", "potential"),), "standby, asynchronous"),
        ((), "standby, asynchronous"),
        ((("", ""),), "not to be seen here"),
        ((("127.0.0.1", "sync"), ("127.0.0.2", "async")), "not to be seen here"),
    ],
)
def test_the_only_standby_is_that_of_the_only_connection(standbys: tuple[tuple[str, str], ...], expected: str) -> None:
    found = said(p=(Host(names="*", standbys=standbys), PRIMARY), s=(Host(standby=True), HERE))
    assert expected in found["s"][1]


def test_a_host_that_does_not_answer_is_named_with_its_reason() -> None:
    found = said(p=(Host(), PRIMARY), s=(Host(fault="the history store cannot be reached [unavailable refused]"), HERE))
    assert found["s"][0] is Level.WARN
    assert "not reachable: the history store cannot be reached [unavailable refused]" in found["s"][1]


def test_without_a_primary_that_is_said() -> None:
    found = said(a=(Host(standby=True), HERE), b=(Host(fault="gone"), THERE))
    assert found["no"] == (Level.WARN, "no host is a primary")
    assert "not to be seen here" in found["a"][1]


def test_a_galera_node_says_so() -> None:
    found = said(n=(Host(detail="Galera Primary Synced", synchronous=True), HERE), m=(Host(synchronous=True), THERE))
    assert found["n"] == (Level.OK, "n, primary, Galera Primary Synced")
