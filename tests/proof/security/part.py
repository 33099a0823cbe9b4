"""Part: injection, isolation, modes, secrets, the console from outside, and rules that the source is held to."""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import Final

from tests.proof.harness import Experiment, Setting, Tally
from tests.proof.security import console, isolation, planted, sql_rule

OWN_RULE: Final = ("B608",)  # what bandit looks for by the words of a statement; `sql_rule` does by what it is made of


def built(setting: Setting) -> Tally:
    if setting.control:
        found = [name for name, source in sql_rule.PLANTED.items() if sql_rule.broken("planted.py", source)]
        return Tally(len(sql_rule.PLANTED), problems=found, notes=f"{len(found)} found")
    wrong = [str(one) for one in sql_rule.unreasoned()]
    notes = f"{len(sql_rule.ALLOWED)} places allowed, each for a reason that is written down"
    return Tally(len(list(sql_rule.sources())), problems=wrong, notes=notes)


def bandit(setting: Setting) -> Tally:
    targets, source = (["-"], "import pickle\npickle.loads(b'')\neval(input())\n") if setting.control else ([], "")
    words = [sys.executable, "-m", "bandit", "-q", "-f", "json", "-ll", "-s", ",".join(OWN_RULE), "-r"]
    words += targets or sql_rule.FOLDERS[: setting.many(len(sql_rule.FOLDERS), 1)]
    done = subprocess.run(words, cwd=sql_rule.ROOT, input=source, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    tally = Tally(1 if setting.control else int(report["metrics"]["_totals"]["loc"]))
    tally.blame(
        f"{one['filename']}:{one['line_number']} {one['test_id']} {one['issue_text']}" for one in report["results"]
    )
    tally.notes = "" if setting.control else f"without {', '.join(OWN_RULE)}: the rule above looks closer"
    return tally


_alone = partial(Experiment, on=())
_control = partial(Experiment, on=(), control=True)
_control_on_sqlite = partial(Experiment, on=("sqlite",), control=True)
_bandit = partial(_alone, missing=lambda: "" if find_spec("bandit") else "bandit is not installed")
TABLE: Final = (
    Experiment(
        "ids made to break out of a statement, in every call: nobody else's rows change", isolation.injected, "ids", 400
    ),
    _control_on_sqlite(
        "the same where a statement is put together of the id: somebody else's rows are reached",
        *(isolation.built_by_hand, "ids"),
    ),
    Experiment(
        "owners whose ids differ in case, accent, space, form or width: read, counted, erased apart",
        *(isolation.isolated, "looks", 200),
    ),
    _control_on_sqlite(
        "the same where ids are folded as a careless collation compares them", isolation.isolated, "looks"
    ),
    Experiment(
        "what was said, planted in a store's own errors: 0 in exceptions, logs, alerts, status, doctor",
        *(planted.quoted, "places"),
        short=False,
    ),
    _alone(
        "logs about hostile ids, as text, as JSON and by a plain formatter: no raw CR, ESC, NUL, U+202E, U+2028",
        *(isolation.logged, "lines"),
    ),
    _control("a logger that is given the id with %s", isolation.logged_raw, "lines"),
    _alone(
        "files written under umask 000, 022, 077: the outbox, its -wal and -shm, the store, exports, letopis.toml",
        *(planted.modes, "files"),
    ),
    _control("a file that is just opened", planted.unguarded, "files"),
    _alone(
        "passwords in URLs, `?password=` too, by option and environment, with --debug: 0 in what commands print",
        *(planted.passwords, "runs"),
    ),
    _control("a message that quotes the URL", planted.passwords, "messages"),
    _alone("alerts that are answered with a redirect: 0 are sent on", console.redirected, "requests", 10),
    _control("the same with redirects followed", console.followed, "requests"),
    _alone(
        "the console without a session, as proxies, other sites and this machine ask: 0 pages, 0 changes",
        *(console.without_session, "requests", 100),
    ),
    _control("the same with open_reading", console.without_session, "requests"),
    _alone("copies of a cookie after signing out, links that were used: 0 are let in", console.ended, "requests", 60),
    _control("the same where only the browser ends a session", console.ended, "requests"),
    _alone(
        "forms without an end, to every path: 0 are taken in without their session's token",
        console.endless,
        "forms",
        20,
    ),
    _control("the same where a form is read before its token is checked", console.endless, "forms"),
    _alone("statements that are built of values; pickle, marshal, yaml.load, eval, exec, shell=True", built, "modules"),
    _control("the same, planted", built, "snippets"),
    _bandit("bandit, medium and high", bandit, "lines"),
    _bandit("bandit on what is planted", bandit, "snippets", control=True),
)
