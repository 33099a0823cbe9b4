"""Part: injection, isolation, modes, secrets, requests inside, and rules that the source is held to."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from random import Random
from typing import Final

from letopis.console.access import Gate, parse_tokens
from tests.proof.options import Options
from tests.proof.rows import Row, row_of
from tests.proof.security import console, isolation, planted, sql_rule
from tests.proof.stores import each, fresh
from tests.support.console import TOKENS
from tests.support.values.secrets import DSNS

INJECTED: Final = "ids made to break out of a statement, in every call: nobody else's rows change"
ISOLATED: Final = "owners whose ids differ in case, accent, space, form or width: read, counted, erased apart"
PLANTED: Final = "what was said, planted in a store's own errors: 0 in exceptions, logs, alerts, status, doctor"
OWN_RULE: Final = ("B608",)  # what bandit looks for by the words of a statement; `sql_rule` does by what it is made of


def prove(options: Options) -> Iterator[Row]:
    hostile = isolation.hostile()
    for store in each(options.folder, "security"):
        if store.missing:
            for what in (INJECTED, ISOLATED, PLANTED):
                yield Row(what=what, where=store.kind, missing=store.missing)
            continue
        folder = options.folder / store.kind
        folder.mkdir()
        random = Random(options.seed)
        some = random.sample(hostile, 30) if options.short else hostile
        came = asyncio.run(isolation.injected(store.url, folder, some, random=random, each=1))
        notes = f"{came.figures['calls']:,} calls, {came.refused:,} refused"
        yield _row(INJECTED, store.kind, came.count, "ids", came.problems, least=500, notes=notes)
        if store.kind == "sqlite":
            found = asyncio.run(isolation.built_by_hand(store.url, hostile))
            what = "the same where a statement is put together of the id: somebody else's rows are reached"
            yield _row(what, store.kind, len(hostile), "ids", found, control=True)
        with fresh(store.kind, options.folder, "security-twins") as other:
            pairs = 3 if options.short else None
            apart = asyncio.run(isolation.isolated(other.url, folder, pairs=pairs))
            yield _row(ISOLATED, store.kind, apart.count, "looks", apart.problems, least=200)
        unable = planted.UNABLE.get(store.kind)
        if unable and not options.short:
            yield Row(what=PLANTED, where=store.kind, missing=unable)
        elif not options.short:
            with fresh(store.kind, options.folder, "security-planted") as other:
                looks, problems = asyncio.run(planted.faults(store.kind, other.url, folder))
                more, besides = planted.asked(other.url, folder)
                yield _row(PLANTED, store.kind, looks + more, "places", [*problems, *besides])
        options.tell(f"security: {store.kind}")
    yield _careless(options)
    yield from _logs(options, hostile)
    yield from _modes(options)
    yield from _commands(options)
    yield from _requests(options)
    yield from _console(options)
    yield from _source()


def _row(
    what: str,
    where: str,
    count: int,
    unit: str,
    problems: list[str],
    *,
    least: int = 0,
    notes: str = "",
    control: bool = False,
) -> Row:
    told = [ascii(one)[1:-1] for one in problems[: 2 if control else 5]]
    return row_of(what, where, count, least, unit, told, notes, violations=len(problems), control=control)


def _careless(options: Options) -> Row:
    with fresh("sqlite", options.folder, "security-careless") as store:
        folder = options.folder / "careless"
        folder.mkdir()
        found = asyncio.run(
            isolation.isolated(store.url, folder, fold=isolation.careless, pairs=options.many(len(isolation.TWINS), 3))
        )
    what = "the same where ids are folded as a careless collation compares them"
    return _row(what, "sqlite", found.count, "looks", found.problems, control=True)


def _logs(options: Options, hostile: list[str]) -> Iterator[Row]:
    some = hostile[: options.many(len(hostile), 60)]
    lines, wrong = asyncio.run(isolation.logged(options.folder, some))
    what = "logs about hostile ids, as text, as JSON and by a plain formatter: no raw CR, ESC, NUL, U+202E, U+2028"
    yield _row(what, "", lines, "lines", wrong)
    yield _row(
        "a logger that is given the id with %s", "", len(some), "lines", isolation.logged_raw(some), control=True
    )


def _modes(options: Options) -> Iterator[Row]:
    names: set[str] = set()
    wrong: list[str] = []
    for mask in planted.UMASKS if not options.short else planted.UMASKS[:1]:
        found, loose = planted.written(options.folder, mask)
        names |= {f"{name} under {mask:03o}" for name in found}
        wrong += loose
    what = "files written under umask 000, 022, 077: the outbox, its -wal and -shm, the store, exports, letopis.toml"
    yield _row(what, "", len(names), "files", wrong)
    yield _row("a file that is just opened", "", 1, "files", planted.unguarded(options.folder), control=True)


def _commands(options: Options) -> Iterator[Row]:
    folder = options.folder / "commands"
    folder.mkdir()
    names = list(DSNS)[: options.many(len(DSNS), 3)]
    runs, found = planted.commands(folder, names)
    what = "passwords in URLs, `?password=` too, by option and environment, with --debug: 0 in what commands print"
    yield _row(what, "", runs, "runs", found)
    shown = [one for name in names for one in planted.leaks(f"letopis: cannot connect to {DSNS[name]}")]
    yield _row("a message that quotes the URL", "", len(names), "messages", shown, control=True)


def _requests(options: Options) -> Iterator[Row]:
    tried, wrong = console.redirected()
    yield _row("alerts that are answered with a redirect: 0 are sent on", "", tried, "requests", wrong, least=10)
    yield _row("the same with redirects followed", "", 1, "requests", console.followed(), control=True)


def _console(options: Options) -> Iterator[Row]:
    asked, wrong = console.without_session(options.folder / "console")
    what = "the console without a session, as proxies, other sites and this machine ask: 0 pages, 0 changes"
    yield _row(what, "", asked, "requests", wrong, least=100)
    asked, found = console.without_session(options.folder / "console-open", open_reading=True)
    yield _row("the same with open_reading", "", asked, "requests", found, control=True)
    rounds = options.many(20, 3)
    gate, forgetful = Gate(parse_tokens(TOKENS)), console.Forgetful(parse_tokens(TOKENS))
    asked, wrong = console.ended(options.folder / "console-ended", rounds, gate=gate)
    what = "copies of a cookie after signing out, links that were used: 0 are let in"
    yield _row(what, "", asked, "requests", wrong, least=60)
    asked, found = console.ended(options.folder / "console-forgetful", 1, gate=forgetful)
    yield _row("the same where only the browser ends a session", "", asked, "requests", found, control=True)
    sent, wrong = console.endless(options.folder / "console-endless")
    what = "forms without an end, to every path: 0 are taken in without their session's token"
    yield _row(what, "", sent, "forms", wrong, least=20)
    sent, found = console.endless(options.folder / "console-careless", careless=True)
    yield _row("the same where a form is read before its token is checked", "", sent, "forms", found, control=True)


def _source() -> Iterator[Row]:
    modules = list(sql_rule.sources())
    wrong = [str(one) for one in sql_rule.unreasoned()]
    what = "statements that are built of values; pickle, marshal, yaml.load, eval, exec, shell=True"
    notes = f"{len(sql_rule.ALLOWED)} places allowed, each for a reason that is written down"
    yield _row(what, "", len(modules), "modules", wrong, notes=notes)
    found = [name for name, source in sql_rule.PLANTED.items() if sql_rule.broken("planted.py", source)]
    yield _row(
        "the same, planted", "", len(sql_rule.PLANTED), "snippets", found, control=True, notes=f"{len(found)} found"
    )
    what = "bandit, medium and high"
    if find_spec("bandit") is None:
        yield Row(what=what, missing="bandit is not installed")
        return
    lines, results = _bandit(*sql_rule.FOLDERS)
    yield _row(what, "", lines, "lines", results, notes=f"without {', '.join(OWN_RULE)}: the rule above looks closer")
    _, planted_found = _bandit("-", source="import pickle\npickle.loads(b'')\neval(input())\n")
    yield _row("bandit on what is planted", "", 1, "snippets", planted_found, control=True)


def _bandit(*targets: str, source: str = "") -> tuple[int, list[str]]:
    words = [sys.executable, "-m", "bandit", "-q", "-f", "json", "-ll", "-s", ",".join(OWN_RULE), "-r", *targets]
    done = subprocess.run(words, cwd=sql_rule.ROOT, input=source, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    found = [
        f"{one['filename']}:{one['line_number']} {one['test_id']} {one['issue_text']}" for one in report["results"]
    ]
    return int(report["metrics"]["_totals"]["loc"]), found
