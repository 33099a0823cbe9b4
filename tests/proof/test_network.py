"""The storm's own rules: messages are cut where they end, a COMMIT is recognised, and fates follow from the seed."""

from __future__ import annotations

import random

import pytest

from tests.proof.network.storm import FATES, LAST_MESSAGE, MARIADB, POSTGRESQL, Cutter, Speech, draw

STARTUP = (8 + 4).to_bytes(4, "big") + b"\0\3\0\0user"


def typed(letter: bytes, body: bytes) -> bytes:
    return letter + (4 + len(body)).to_bytes(4, "big") + body


def numbered(body: bytes, number: int = 0) -> bytes:
    return len(body).to_bytes(3, "little") + bytes((number,)) + body


@pytest.mark.parametrize(
    ("speech", "asks", "messages"),
    [
        (POSTGRESQL, True, [STARTUP, typed(b"Q", b"COMMIT;\0"), typed(b"P", b"x" * 300), typed(b"S", b"")]),
        (POSTGRESQL, False, [typed(b"C", b"COMMIT\0"), typed(b"Z", b"I")]),
        (MARIADB, True, [numbered(b"login"), numbered(b"\3COMMIT"), numbered(b"\3" + b"x" * 70_000)]),
        (MARIADB, False, [numbered(b"\0\0\0\2\0\0\0", 1)]),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 7, 100_000])
def test_messages_are_cut_where_they_end(speech: Speech, asks: bool, messages: list[bytes], step: int) -> None:
    cutter, whole = Cutter(speech, asks=asks), b"".join(messages)
    assert [one for at in range(0, len(whole), step) for one in cutter.feed(whole[at : at + step])] == messages


def test_a_commit_is_recognised_and_whether_it_took_effect() -> None:
    assert POSTGRESQL.commits(typed(b"Q", b"COMMIT;\0"))
    assert not POSTGRESQL.commits(typed(b"Q", b"BEGIN ISOLATION LEVEL READ COMMITTED;\0"))
    assert not POSTGRESQL.commits(typed(b"P", b"COMMIT;\0"))
    assert POSTGRESQL.committed(typed(b"C", b"COMMIT\0")) and not POSTGRESQL.committed(typed(b"C", b"ROLLBACK\0"))
    assert POSTGRESQL.ends(typed(b"Z", b"I")) and not POSTGRESQL.ends(typed(b"C", b"COMMIT\0"))
    assert MARIADB.writes(numbered(b"\3INSERT INTO letopis_events VALUES (1)"))
    assert not MARIADB.writes(numbered(b"\3SELECT * FROM letopis_events"))
    assert MARIADB.commits(numbered(b"\3COMMIT"))
    assert not MARIADB.commits(numbered(b"\3SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"))
    assert MARIADB.committed(numbered(b"\0\0\0", 1)) and not MARIADB.committed(numbered(b"\xff\x15\x04", 1))


def test_the_same_seed_draws_the_same_fates_and_all_of_them() -> None:
    drawn = [draw(random.Random(f"{seed}")) for seed in range(600)]
    assert drawn == [draw(random.Random(f"{seed}")) for seed in range(600)]
    assert {(one.moment, one.act) for one in drawn} == set(FATES)
    assert 0 < sum(one.at > LAST_MESSAGE for one in drawn) < 120


def test_garbage_has_a_length_that_asyncpg_survives() -> None:
    for seed in range(500):
        chance = random.Random(seed)
        data = POSTGRESQL.garbage(chance.randbytes(chance.randint(6, 200)))
        assert 4 <= int.from_bytes(data[1:5], "big") < 2**31
