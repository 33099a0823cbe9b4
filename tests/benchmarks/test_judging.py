"""The judge of the benchmark: what it compares, what it refuses to, and that it sees what is switched off."""

import random
import sqlite3
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import large_backlog as backlog
from benchmarks import listening as wake
from benchmarks import peers
from benchmarks.__main__ import FRONT, PUBLISHED
from benchmarks.append_limit import AppendLimit
from benchmarks.figures import Durability, Figure, percentile
from benchmarks.judging import Figures, NotComparable, ahead, at_least, at_most, below, compare
from benchmarks.letopis_subject import Letopis
from benchmarks.page import front, page
from benchmarks.peers import PEERS
from benchmarks.subjects import Missed, Seat, in_rounds, warm_up
from benchmarks.table import judge
from benchmarks.witness import Witness, watching
from letopis.outbox.event_log import append_encoding
from letopis.store.model.codec import Limits, encode_message
from letopis.store.model.messages import Message

FULL = Durability.of_sqlite("wal", 2)
NORMAL = Durability.of_sqlite("wal", 1)
OFF = Durability.of_sqlite("wal", 0)


def figure(key: str, *samples: float, durability: Durability | None = FULL, **more: Any) -> Figure:
    return Figure(key=key, name=key, unit="messages/s", samples=samples, durability=durability, **more)


def test_a_ratio_is_that_of_the_rounds() -> None:
    """In the second round the machine was slow for both, and the ratio is as good as in the others."""
    ratio = compare(figure("ours", 80, 8, 90), figure("limit", 100, 10, 100))

    assert (ratio.median, ratio.low, ratio.high) == (0.8, 0.8, 0.9)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (figure("b", 100.0, durability=NORMAL), "unequal durability"),
        (figure("b", 100.0, durability=OFF), "unequal durability"),
        (figure("b", 1.0, durability=None), "durability of b is not known"),
        (figure("b", 1.0, objections=("validation is switched off",)), "validation"),
        (replace(figure("b", 1.0), unit="ms"), "in ms"),
        (figure("b", 0.0), "zero"),
        (figure("b"), "no samples"),
    ],
)
def test_what_cannot_be_compared_says_why(other: Figure, why: str) -> None:
    ours = figure("a", 1.0)

    with pytest.raises(NotComparable, match=why):
        compare(ours, other)
    condition = at_least(Figures([ours, other]), "a", "b", 0.5, what="of theirs")
    assert (condition.reached, condition.got) == (None, None)
    assert why in condition.note


def test_all_that_a_commit_may_be_is_known_for_durable_or_not() -> None:
    sqlite, postgresql, mariadb = Durability.of_sqlite, Durability.of_postgresql, Durability.of_mariadb
    durable = [FULL, sqlite("delete", 2), sqlite("wal", 3), mariadb(flush_log_at_trx_commit=1)]
    weak = [NORMAL, OFF, sqlite("memory", 2), sqlite("off", 2), mariadb(flush_log_at_trx_commit=2)]

    assert all(one.durable for one in (*durable, postgresql(fsync="on", synchronous_commit="on")))
    assert not any(one.durable for one in weak)
    assert not postgresql(fsync="off", synchronous_commit="on").durable
    assert not postgresql(fsync="on", synchronous_commit="off").durable
    assert Durability.weakest([FULL, NORMAL, OFF]) == OFF
    assert Durability.weakest([]) is None


def test_being_ahead_is_told_against_the_best_rival_and_names_whom_it_leaves_out() -> None:
    rivals = [figure("p.slow", 10), figure("p.good", 25), figure("p.fast", 900, durability=OFF)]

    condition = ahead(Figures([figure("ours", 100), *rivals]), "ours", "p.", 5, what="", only=lambda _: True)
    assert (condition.got, condition.reached) == ("4.00 times p.good", False)
    assert "p.fast is WAL/OFF" in condition.note


def test_less_is_better_where_it_is() -> None:
    ours, theirs = (
        replace(figure(key, seconds, durability=None), more_is_better=False)
        for key, seconds in (("ours", 2.0), ("p.theirs", 5.0))
    )
    figures = Figures([ours, theirs])

    assert ahead(figures, "ours", "p.", 2, what="", only=lambda _: True).reached is True
    assert at_most(figures, "ours", "p.theirs", 0.5, what="").reached is True
    assert at_most(figures, "p.theirs", "ours", 2, what="").reached is False
    assert [below(figures, "ours", limit, what="").reached for limit in (2, 2.1)] == [False, True]


def test_what_was_not_measured_is_open_and_a_row_is_missed_where_a_condition_is() -> None:
    verdicts = judge(Figures([]))

    assert [one.number for one in verdicts] == list(range(1, 18))
    assert {one.reached for one in verdicts} == {None}
    missed = judge(Figures([figure("append.1.letopis", 50), figure("append.1.limit", 100)]))
    assert missed[0].reached is False


def test_a_percentile_is_one_of_the_values() -> None:
    values = list(range(100, 0, -1))

    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


def test_the_page_tells_what_a_user_asks_what_is_missing_and_what_is_of_unequal_durability() -> None:
    alone, many = figure("append.1.letopis", 1.0, details={"p50 ms": 0.4}), figure("append.64.letopis", 9000.0)
    mixed = [alone, many, figure("append.1.fast", 9, durability=NORMAL)]
    missing = [{"name": "a peer", "reason": "not installed"}]
    part = {"part": "append", "figures": [one.to_json() for one in mixed], "missing": missing}
    machine = {"processors": 2, "versions": {"Python": "3.11"}}

    shown = page({"date": "2026-11-25", "rounds": 5, "commit": "0123abc", "machine": machine, "parts": [part]})
    first, last = shown.split("## For contributors")
    assert "An append takes 0.400 ms and survives a power cut; 9,000 a second" in first
    assert "Reading the last 50" not in first  # it was not measured
    assert ("| wanted |" in first, "| wanted |" in last) == (False, True)
    assert "- a peer: not installed" in last
    assert "Not of equal durability" in shown and "append.1.fast (WAL/NORMAL)" in shown


def test_the_page_of_totals_is_made_of_the_page_of_every_figure_and_shows_what_is_lost() -> None:
    totals = FRONT.read_text(encoding="utf-8")

    assert front(PUBLISHED.read_text(encoding="utf-8")) == totals
    assert "Letopis, the question is pending: 1.65 | **OpenAI Agents SQLiteSession, FULL: 0.979** |" in front(
        "# Speed: every figure\n\n## A bot's turn: append, then read the last 50\n\n|   | ms | durability | besides |\n"
        "| Letopis, the question is pending | 1.65 (1 to 2) | - |  |\n"
        "| OpenAI Agents SQLiteSession, FULL | 0.979 (1 to 2) | - |  |\n\n## How it was measured\n\nHere.\n"
    )


async def measured(folder: Path, at_once: int, *subjects: tuple[Any, tuple[str, str] | None]) -> list[Figure]:
    """Have subjects append side by side, each under a witness that may force its durability; return their figures."""
    seats = list[Seat]()
    with watching() as add:
        for subject, force in subjects:
            place = folder / type(subject).__name__
            place.mkdir()
            witness = Witness(place, force=force)
            add(witness)
            await subject.open(place)
            seats.append(Seat(subject, witness, ""))
            await warm_up(seats[-1])
        await in_rounds(seats, at_once=at_once, rounds=2, seconds=0.05, chance=random.Random(1))
        figures = [seat.figure(f"append.{at_once}", at_once) for seat in seats]
        for seat in seats:
            await seat.subject.close()
    return figures


async def test_control_a_subject_that_is_made_to_wait_for_nothing_is_flagged(tmp_path: Path) -> None:
    """The same subject twice, one with ``synchronous=OFF``: read from its own connection, and refused."""
    figures = await measured(tmp_path, 4, (Letopis(), None), (AppendLimit(), ("WAL", "OFF")))

    assert [str(one.durability) for one in figures] == ["WAL/FULL", "WAL/OFF"]
    assert [one.objections for one in figures] == [(), ()]
    assert all(one.low > 0 for one in figures)
    with pytest.raises(NotComparable, match="WAL/OFF"):
        compare(*figures)


async def test_control_a_library_that_sets_its_own_after_connecting_is_read_as_it_is(tmp_path: Path) -> None:
    with watching() as add:
        witness = Witness(tmp_path, force=("WAL", "FULL"))
        add(witness)
        connection = sqlite3.connect(tmp_path / "a.db")
        connection.execute("PRAGMA synchronous=NORMAL")

        assert str(witness.durability()) == "WAL/NORMAL"
        witness.enforce()
        assert str(witness.durability()) == "WAL/FULL"
        connection.execute("PRAGMA synchronous=OFF")
        connection.close()
        assert str(witness.durability()) == "WAL/OFF"
        elsewhere = sqlite3.connect(":memory:")
        assert type(elsewhere) is sqlite3.Connection
        elsewhere.close()


async def test_control_an_append_without_validation_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(message: Message, **options: Any) -> Any:
        return encode_message(replace(message, content="x"), **{**options, "limits": Limits(), "metadata": {}})

    monkeypatch.setattr(append_encoding, "encode_message", unchecked)
    found = await measured(tmp_path, 1, (Letopis(), None), (AppendLimit(), None))

    assert any("validation is switched off" in one for one in found[0].objections)
    with pytest.raises(NotComparable, match="validation"):
        compare(*found)
    assert judge(Figures(found))[0].conditions[0].reached is None


async def test_a_peer_that_is_not_installed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(peers, "import_module", none)
    for peer in PEERS:
        with pytest.raises(Missed, match="is not installed"):
            await peer().open(tmp_path)


@pytest.mark.slow
def test_a_relay_starts_at_once_on_a_hundred_thousand_pending_events(tmp_path: Path) -> None:
    report = backlog.measure(tmp_path, events=100_000, watch=4.0)

    assert report.delivered > 0, str(report)
    assert 0 < report.first_delivery < 5 * backlog.MAX_START_SECONDS, str(report)
    assert report.peak_rss < backlog.MAX_RSS_BYTES, str(report)


@pytest.mark.slow
def test_a_commit_elsewhere_is_heard_soon_and_listening_costs_little(tmp_path: Path) -> None:
    report = wake.measure(tmp_path, wakes=60, idle=5.0, longest=0.2, quiet=1.0, quiet_wakes=2)

    assert statistics.median(report.delays) < wake.MAX_WAKE_P99_SECONDS, str(report)
    assert report.idle_cpu < 3 * wake.MAX_IDLE_CPU, str(report)
