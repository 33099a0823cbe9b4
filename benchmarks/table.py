"""Define the rows that the benchmark is judged by."""

from __future__ import annotations

from benchmarks.figures import Figure
from benchmarks.judging import Condition, Figures, Verdict, ahead, at_least, at_most, below

KINDS = ("postgresql", "mariadb", "sqlite")


def judge(figures: Figures) -> tuple[Verdict, ...]:
    """Return the verdict on each row, in order."""
    rows: tuple[tuple[str, tuple[Condition, ...]], ...] = (
        ("append, one at a time, FULL", _one_at_a_time(figures)),
        ("append, 64 at once, validation, ids, encoding and digest included", _at_once(figures)),
        (
            "append inside the caller's own transaction",
            (at_most(figures, "transaction.with", "transaction.without", 1.3, what="against it without the append"),),
        ),
        (
            "event loop, under 2 and under a drain",
            (
                below(figures, "loop.append", 5, what="lag p99, 64 appends at once"),
                below(figures, "loop.drain", 5, what="lag p99, drain into postgresql"),
            ),
        ),
        (
            "drain into PostgreSQL, whole apply with projections",
            (
                at_least(
                    figures, "drain.postgresql.letopis", "drain.postgresql.raw", 0.70, what="of a raw asyncpg loop"
                ),
                ahead(
                    figures,
                    "drain.postgresql.letopis",
                    "drain.txoutbox",
                    5,
                    what="of txoutbox with a row insert a message",
                    only=lambda _: True,
                ),
            ),
        ),
        (
            "the same into MariaDB and into SQLite",
            tuple(
                at_least(figures, f"drain.{kind}.letopis", f"drain.{kind}.raw", 0.60, what=f"of the raw loop of {kind}")
                for kind in ("mariadb", "sqlite")
            ),
        ),
        (
            "one hot conversation",
            (at_least(figures, "drain.hot", "drain.postgresql.letopis", 0.5, what="of the rate of row 5"),),
        ),
        (
            "append at 2,000/s while the daemon drains in another process",
            (
                below(figures, "daemon.append", 10, what="append p99"),
                below(figures, "daemon.saved", 50, what="append to saved p99"),
                _above(figures, "daemon.append", "said /s", 1_900, what="appends a second that were kept"),
            ),
        ),
        (
            "wake",
            (
                below(figures, "wake.across", 20, what="another process, p99"),
                below(figures, "wake.across", 1, what="CPU while nothing happens", detail="idle CPU %"),
                below(figures, "wake.inside", 5, what="the same process, p99"),
            ),
        ),
        ("messages(last=50), by size of history and conversation", _reads(figures)),
        (
            "overlay with 1,000 pending events in the conversation",
            tuple(
                at_most(
                    figures,
                    f"overlay.{kind}.pending",
                    f"overlay.{kind}.none",
                    3,
                    what=f"against nothing pending, {kind}",
                )
                for kind in KINDS
            ),
        ),
        (
            "relay start with 1,000,000 pending events",
            (
                below(figures, "start.first", 2, what="until the first delivery"),
                below(figures, "start.first", 150, what="memory", detail="memory MB"),
                _above(figures, "start.first", "events", 999_999, what="pending events"),
            ),
        ),
        (
            "bytes an event costs on disk, against the JSON itself",
            (
                below(figures, "disk.outbox", 1.6, what="outbox"),
                below(figures, "disk.postgresql", 2.2, what="PostgreSQL"),
            ),
        ),
        (
            "start-up",
            (
                below(figures, "import.outbox", 0.35, what="import letopis.outbox"),
                below(figures, "import.history", 0.35, what="from letopis.outbox import History"),
                below(figures, "import.help", 0.15, what="letopis --help"),
            ),
        ),
        (
            "growth: 1, 2, 5 and 10 at 10 times the data",
            (
                at_least(figures, "growth.append.1.grown", "growth.append.1.base", 1 / 1.2, what="row 1"),
                at_least(figures, "growth.append.64.grown", "growth.append.64.base", 1 / 1.2, what="row 2"),
                at_least(figures, "growth.drain.grown", "growth.drain.base", 1 / 1.2, what="row 5"),
                at_most(figures, "growth.read.grown", "growth.read.base", 1.2, what="row 10"),
            ),
        ),
        (
            "a bot's turn: append, read the last 50; a session's on PostgreSQL: read 40, add 2",
            (
                at_most(
                    figures,
                    "turn.cpu.sqlite.letopis.pending",
                    "turn.cpu.sqlite.openai",
                    1.5,
                    what="processor time against OpenAI's SQLiteSession, the question pending",
                ),
                at_most(
                    figures,
                    "turn.wall.sqlite.letopis.settled",
                    "turn.wall.sqlite.openai",
                    1,
                    what="time against it, nothing pending",
                ),
                at_most(
                    figures,
                    "turn.wall.postgresql.letopis",
                    "turn.wall.postgresql.openai",
                    1,
                    what="time against SQLAlchemySession on PostgreSQL",
                ),
            ),
        ),
        (
            "append to a file that holds records",
            (at_most(figures, "records.append.with", "records.append.without", 1.2, what="against one without"),),
        ),
    )
    return tuple(
        Verdict(number=number, work=work, conditions=conditions)
        for number, (work, conditions) in enumerate(rows, start=1)
    )


def _one_at_a_time(figures: Figures) -> tuple[Condition, ...]:
    return (
        at_least(figures, "append.1.letopis", "append.1.limit", 0.80, what="of the asyncio limit"),
        ahead(
            figures,
            "append.1.letopis",
            "append.1.",
            1,
            what="of the best async peer at FULL",
            only=lambda one: _is_peer(one) and not one.details["blocks the loop"],
        ),
    )


def _at_once(figures: Figures) -> tuple[Condition, ...]:
    return (
        at_least(figures, "append.64.letopis", "append.64.limit", 0.60, what="of the asyncio limit"),
        ahead(figures, "append.64.letopis", "append.64.", 8, what="of the best peer at FULL", only=_is_peer),
        below(figures, "append.64.letopis", 10, what="until it is kept, p99", detail="p99 ms"),
    )


def _reads(figures: Figures) -> tuple[Condition, ...]:
    found = []
    for kind in KINDS:
        ours = [one for one in figures.under(f"read.{kind}.") if one.key.endswith(".letopis")]
        if not ours:
            found.append(
                Condition(what=f"flat, {kind}", wanted="at most 1.3", got=None, reached=None, note="not measured")
            )
            continue
        quickest = min(ours, key=lambda one: one.median)
        slowest = max(ours, key=lambda one: one.median)
        flat = at_most(figures, slowest.key, quickest.key, 1.3, what=f"flat, {kind}: slowest against quickest")
        largest = any(".10000000." in one.key for one in ours)
        found.append(
            flat
            if largest or not flat.reached
            # A result within a tenth of its target is not reached yet, and not missed.
            else Condition(what=flat.what, wanted=flat.wanted, got=flat.got, reached=None, note="1e7 needs --whole")
        )
        for one in ours:
            bare = one.key.removesuffix(".letopis") + ".bare"
            found.append(
                at_most(
                    figures, one.key, bare, 3, what=f"against the bare SELECT, {one.name.removeprefix('Letopis, ')}"
                )
            )
    found.append(
        ahead(figures, "read.letopis", "read.peers.", 1, what="of the quickest peer, last 50", only=lambda _: True)
    )
    return tuple(found)


def _is_peer(one: Figure) -> bool:
    return one.key.endswith(".FULL")


def _above(figures: Figures, key: str, detail: str, least: float, *, what: str) -> Condition:
    figure = figures.get(key)
    wanted = f"above {least:,.0f}"
    if figure is None or detail not in figure.details:
        return Condition(what=what, wanted=wanted, got=None, reached=None, note="not measured")
    value = figure.details[detail]
    # A run that was made smaller proves nothing about the size that is asked for.
    return Condition(
        what=what,
        wanted=wanted,
        got=f"{value:,.0f}",
        reached=True if value > least else (None if detail == "events" else False),
        note="" if value > least or detail != "events" else "a smaller run",
    )
