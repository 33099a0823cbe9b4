"""Part: injection, isolation, modes, passwords, and what bandit finds in the source."""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import Final

from tests.proof.harness import Experiment, Setting, Tally
from tests.proof.security import isolation, planted, sql_rule

OWN_RULE: Final = (
    "B608",
)  # what bandit looks for by the words of a statement; `tests/rules/test_sql_rule.py` does by what it is made of


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
    tally.notes = "" if setting.control else f"without {', '.join(OWN_RULE)}: a rule of our own looks closer"
    return tally


_alone = partial(Experiment, on=())
_control = partial(Experiment, on=(), control=True)
_control_on_sqlite = partial(Experiment, on=("sqlite",), control=True)
_bandit = partial(_alone, missing=lambda: "" if find_spec("bandit") else "bandit is not installed")
TABLE: Final = (
    Experiment(
        "ids made to break out of a statement, in every call: nobody else's rows change", isolation.injected, "ids", 500
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
    _bandit("bandit, medium and high", bandit, "lines"),
    _bandit("bandit on what is planted", bandit, "snippets", control=True),
)
