"""The model of forks; that each kind of store agrees with it is what the short form of the part shows."""

from __future__ import annotations

from tests.model.plain import Plain


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
