"""The security's own rules: what a careless collation folds, which lines are raw, and whose modes are loose."""

from __future__ import annotations

from pathlib import Path

from tests.proof.security.isolation import TWINS, careless, hostile, logged_raw, raw_signs
from tests.proof.security.planted import looked_at, unguarded


def test_there_are_ids_enough_and_none_twice() -> None:
    assert len(hostile()) >= 500
    assert len(set(hostile())) == len(hostile())
    assert all(one != other for _, one, other in TWINS)


def test_a_careless_collation_takes_most_twins_for_one() -> None:
    same = [kind for kind, one, other in TWINS if careless(one) == careless(other)]
    assert {"case", "trailing space", "accent", "NFC and NFD", "width"} <= set(same)


def test_a_line_is_raw_if_it_could_forge_another() -> None:
    assert raw_signs("a line\nand 'a\\u202eb' escaped\n") == []
    assert len(raw_signs("a\x1b[2J\nb\u202e\nc\rd\n")) == 3
    assert logged_raw(["a\u202eb"])


def test_a_mode_that_lets_others_in_is_seen(tmp_path: Path) -> None:
    assert unguarded(tmp_path) == ["plain.db has mode 0666"]
    (tmp_path / "own").write_bytes(b"")
    (tmp_path / "own").chmod(0o600)
    (tmp_path / "unguarded" / "plain.db").unlink()
    assert looked_at(tmp_path) == (["own"], [])
