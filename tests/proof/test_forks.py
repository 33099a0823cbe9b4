"""The model of forks, in short: each kind of store agrees with it, and the rule that was followed once does not."""

from __future__ import annotations

from pathlib import Path

from tests.model.plain import Plain
from tests.proof.forks.part import prove
from tests.proof.options import Options


def test_a_little_of_the_part(tmp_path: Path) -> None:
    rows = list(prove(Options(short=True, seed=7, folder=tmp_path)))

    assert [row.where for row in rows] == [*(["sqlite"] * 2), *(["postgresql"] * 2), *(["mariadb"] * 2), "sqlite"]
    assert all(row.ok(short=True) for row in rows), [row.problems for row in rows]
    assert rows[-1].control and rows[-1].violations > 0


def test_the_model_keeps_what_a_fork_of_a_cleared_fork_reads() -> None:
    plain = Plain()
    parent = plain.begin("p")
    plain.say(parent, "1", "user", "one")
    cleared = plain.fork("f", parent, version=1)
    fork = plain.fork("g", cleared, version=1)
    plain.rewind(cleared, None)
    plain.delete(parent)

    assert not cleared.path
    assert [(one.chat.id, one.id, one.shown) for one in fork.path] == [("p", "1", "one")]
    assert plain.needed() == {"f": 1, "p": 1}
    plain.redact(parent, "1")
    assert [one.shown for one in fork.path] == [""]
    plain.delete(fork)
    assert plain.needed() == {}
