"""The project's chores; `nox -l` lists them."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
LOCK = ROOT / "requirements" / "dev.txt"
TEST_LOCK = ROOT / "requirements" / "test.txt"
ADAPTERS_LOCK = ROOT / "requirements" / "adapters.txt"
RUNTIME_LOCK = ROOT / "requirements" / "runtime.txt"
NAMES = ("store", "outbox", "adapters", "console", "testing", "migrations")
PACKAGES = tuple(word for name in NAMES for word in ("-p", f"letopis.{name}"))

FRAMEWORKS = (
    *("agent-framework", "aiogram", "google-adk", "haystack", "langchain", "langgraph", "llama-index"),
    *("openai-agents", "pydantic-ai", "pyrogram", "strands", "telegram"),
)
"""The extras of frameworks that Letopis has adapters for."""
COMPANIONS = {
    "haystack": ("haystack-experimental",),
    "langgraph": ("langgraph", "langgraph-checkpoint-conformance", "langgraph-checkpoint-sqlite"),
}
"""What the tests of an adapter need besides."""

nox.options.sessions = ["lint", "typing", "tests", "docs"]


def _project() -> dict[str, Any]:
    return nox.project.load_toml(ROOT / "pyproject.toml")


def install(session: nox.Session) -> None:
    """Install the locked development set and the project itself."""
    session.install("--require-hashes", "-r", str(LOCK))
    session.install("--no-deps", "-e", ".")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the test suite; words after `--` go to pytest."""
    install(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def adapters(session: nox.Session) -> None:
    """Test the adapters with the newest releases of their frameworks; words after `--` go to pytest."""
    install(session)
    session.install("--editable", ".", *nox.project.dependency_groups(_project(), "adapters"))
    session.run("python", "-m", "pytest", *_adapter_tests(), *session.posargs)


@nox.session
@nox.parametrize("extra", FRAMEWORKS)
def adapters_oldest(session: nox.Session, extra: str) -> None:
    """Test an adapter with the oldest release of its framework; tests of the others skip."""
    install(session)
    oldest = [re.sub(r">=([\d.]+).*", r"==\1", one) for one in _project()["project"]["optional-dependencies"][extra]]
    session.install("--editable", ".", *oldest, *COMPANIONS.get(extra, ()))
    # Old releases warn of what newer libraries have deprecated since.
    session.run("python", "-m", "pytest", "-W", "ignore::DeprecationWarning", *_adapter_tests(), *session.posargs)


def _adapter_tests() -> list[str]:
    patterns = (
        "unit/adapters",
        "acceptance/test_howto_*.py",
        "acceptance/test_adapter_*.py",
        "integration/test_adapter_*.py",
        "integration/test_langgraph_*.py",
    )
    return sorted(str(one) for pattern in patterns for one in ROOT.glob(f"tests/{pattern}"))


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style and spelling."""
    install(session)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("codespell")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy (strict) and pyright."""
    install(session)
    session.run("mypy", *PACKAGES)
    session.run("pyright", "--pythonpath", str(Path(session.bin) / "python"))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session)
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def campaign(session: nox.Session) -> None:
    """Send real conversations through all three stores under faults; words after `--` go to the campaign."""
    install(session)
    session.run(
        "python", "-m", "tests.campaigns.chitchat", *(session.posargs or ("--sample", "0.01", "--store", "all"))
    )


@nox.session
def proof(session: nox.Session) -> None:
    """Break everything that can be broken, and count what is lost; words after `--` go to the proof."""
    install(session)
    session.run("python", "-m", "tests.proof", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the core a line at a time, and count what no test notices; words after `--` go to the mutants."""
    install(session)
    session.install("coverage")  # not locked: says which test runs which line, and nothing else needs it
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure Letopis beside its peers and the limits; words after `--` go to the benchmark."""
    install(session)
    # Not locked: the newest of each is what is to be compared with.
    session.install(*nox.project.dependency_groups(_project(), "bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def everything(session: nox.Session) -> None:
    """Run every test, frameworks and pages included, as CI does; words after `--` go to pytest."""
    session.install("--require-hashes", "-r", str(ADAPTERS_LOCK))
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "pytest", "-m", "not comparison", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Write requirements/ anew: every version with its hashes, without addresses.

    `test.txt` is for the README's test command, `dev.txt` for all of this repository's chores, `runtime.txt` for users:
    Letopis with all its extras, and nothing of ours. `adapters.txt` is `dev.txt` with the frameworks that Letopis has
    adapters for, which are in none of the others.
    """
    session.install("uv")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = re.sub(r"^bench = \[.*?^\]\n", "", text, flags=re.MULTILINE | re.DOTALL)
    # Not every framework runs on a Python that is not out yet.
    whole = text.replace('requires-python = ">=3.11"', 'requires-python = ">=3.11,<3.14"')
    # Neither frameworks nor peers decide which versions of our own dependencies are locked.
    for name in FRAMEWORKS:
        text = re.sub(rf"^{name} = \[.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^adapters = \[.*?^\]\n", "", text, flags=re.MULTILINE | re.DOTALL)
    _write_lock(session, text, LOCK, "--group", "dev")
    _write_lock(session, text, TEST_LOCK, "--no-default-groups", "--group", "test")
    _write_lock(session, text, RUNTIME_LOCK, "--no-default-groups")
    _write_lock(session, whole, ADAPTERS_LOCK, "--group", "dev", "--group", "adapters")


def _write_lock(session: nox.Session, project: str, path: Path, *groups: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        # uv also writes a lock of its own, which names the registry that was asked: it stays in the temporary folder.
        Path(temporary, "pyproject.toml").write_text(project, encoding="utf-8")
        for name in ("README.md", "LICENSE"):
            shutil.copy(ROOT / name, temporary)
        for name in ("store", "outbox", "migrations"):
            Path(temporary, name).mkdir()
        with session.chdir(temporary):
            locked = session.run(
                *("uv", "export", "--quiet", "--format", "requirements.txt", "--all-extras", *groups),
                *("--no-emit-project", "--no-annotate", "--no-header"),
                silent=True,
                log=False,
            )
    head = "# Made by `nox -s lock` from pyproject.toml; not edited by hand.\n"
    path.write_text(f"{head}{locked}", encoding="utf-8")
