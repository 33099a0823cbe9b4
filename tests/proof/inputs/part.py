"""Hand everything hostile to every call, importer and command, on three stores."""

from functools import partial
from typing import Any, Final

from tests.proof.harness import Experiment, Setting, Tally
from tests.proof.inputs import bombs, commands, constructing, corpus, lines, running
from tests.proof.inputs.calls import LEFT_OUT, TABLES
from tests.proof.inputs.calls import untried as calls_untried


def surface(_: Setting) -> Tally:
    notes = f"{sum(map(len, LEFT_OUT.values()))} left out, each for a reason that is written down"
    missing = [*calls_untried(), *constructing.untried()]
    return Tally(sum(map(len, TABLES.values())), problems=missing, notes=notes)


_alone = partial(Experiment, on=())


def _runs(what: str, attempts: Any, many: tuple[int, int], *, short: bool = True) -> Experiment:
    return _alone(what, partial(commands.judged, attempts=attempts, many=many), "runs", short=short)


TABLE: Final = (
    _alone("public methods and classes that have a hostile run, or a reason why not", surface, "methods"),
    _alone(
        "every public constructor, one argument hostile: what it lets through is encoded, or refused by name",
        *(constructing.constructors, "inputs", 500),
    ),
    Experiment(
        "every public call, one argument hostile: kept equal in the store, or refused by name and nothing written",
        *(running.from_tasks, "inputs", 500),
        short=("sqlite",),
    ),
    Experiment(
        "hostile values at every place of an append: kept equal in the store, or refused by the field's name",
        *(corpus.appended, "inputs", 500),
    ),
    Experiment(
        "lines of a mutated import file: taken and delivered, or refused by number; twice changes nothing",
        *(lines.imported, "lines", 500),
    ),
    Experiment(
        "what tools return, through every adapter: comes back from the store as the framework's own backend gives it",
        *(lines.kept, "items"),
        short=("sqlite",),
    ),
    Experiment(
        "text with NUL in it where nothing looks at text before it is appended",
        *(running.blocked_at_delivery, "inputs"),
        on=("postgresql",),
        defect="text is not checked before it is appended",
    ),
    Experiment("the same where the envelope holds no text", lines.kept, "items", on=("sqlite",), control=True),
    _alone("options of `open`, hostile", constructing.opened, "inputs", 100, where="sqlite"),
    _runs("options and arguments of every verb of the command, hostile", commands.options, (2, 0), short=False),
    _runs("variables of the environment, hostile", commands.environment, (4, 1)),
    _runs("letopis.toml, mutated", commands.configuration, (60, 6)),
    _runs("the outbox file, damaged or something else", commands.outboxes, (32, 4)),
    _runs("the command as a process of its own, hostile", commands.processes, (6, 2)),
    _alone(
        "import of a file that never ends, is one line, nested, compressed: memory is bounded, and it says why",
        *(bombs.imported, "bombs"),
    ),
    _alone("the same one line where the importer reads lines of any length", bombs.unbounded, "bombs", control=True),
)
