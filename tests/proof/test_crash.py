"""How processes are killed: where a death is planted, and what counts as a promise."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.campaigns.record_invariants import RecordAck
from tests.proof.crash import at_random, moments
from tests.proof.crash.moments import Moment, Side, Who
from tests.proof.harness import Setting, Tally
from tests.proof.options import Options
from tests.support.promises import PATHS, WrittenPromises, line_of, read_promises


class Dead(Exception):
    """Instead of the end of the process."""


def moment(side: Side) -> Moment:
    return Moment("made up", Who.BOT, "made:up", side, "nothing stored", counts=lambda given, _: given[0] > 0)


def die() -> None:
    raise Dead


@pytest.mark.parametrize(("side", "made"), [(Side.BEFORE, [1, 0]), (Side.AFTER, [1, 0, 2])])
async def test_a_death_is_at_the_call_that_was_meant(
    side: Side, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "die", die)

    def call(value: int) -> int:
        done.append(value)
        return value

    async def later(value: int) -> int:
        return call(value)

    for real in (call, later):
        done = list[int]()
        dying = moments.wrapped(real, moment(side), 2)
        for value in (1, 0):
            answer = dying(value)
            assert value == (await answer if real is later else answer)
        with pytest.raises(Dead):
            await dying(2)
        assert done == made


@pytest.mark.parametrize(("bad", "seeds"), [(None, [7, 8, 9]), (8, [7, 8])])
def test_each_round_of_kills_has_an_empty_store_and_the_next_seed(
    bad: int | None, seeds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[Setting] = []

    async def kill(setting: Setting, **_: Any) -> Tally:
        settings.append(setting)
        assert not any(setting.folder.iterdir())
        return Tally(count=110, problems=["lost"] if setting.seed == bad else [])

    monkeypatch.setattr(at_random, "kill", kill)
    options = Options(short=False, seed=7, folder=tmp_path, rounds=3)
    tally = at_random.kill_in_rounds(Setting(options=options, kind="sqlite", url="", folder=tmp_path))

    assert [setting.seed for setting in settings] == seeds
    assert len({setting.url for setting in settings}) == len(seeds)
    assert tally.count == 110 * len(seeds)
    assert tally.problems == (["seed 8: lost"] if bad else [])


def test_half_a_line_is_no_promise(tmp_path: Path) -> None:
    lines = [line_of("chat", UUID(int=number), number) for number in (1, 2)]
    saved = line_of("chat", UUID(int=1), None, saved=True)

    record = RecordAck("\1s:bots:3", UUID(int=4), 1, None)
    path = tmp_path / "acks"
    written = WrittenPromises(path)
    written.keep_record(record)
    written.keep_path()
    written.close()

    kept = read_promises(b"".join((*lines, saved, path.read_bytes(), line_of("chat", UUID(int=3), 3)[:-1])))

    assert read_promises(b"").acks == []
    assert kept.acks == [("chat", UUID(int=1), 1), ("chat", UUID(int=2), 2)]
    assert kept.saved == [UUID(int=1)]
    assert (kept.records, kept.paths, kept.possible_paths) == ([record], 1, (PATHS[0], PATHS[1]))
    assert read_promises(b"").possible_paths == ((), PATHS[0])
