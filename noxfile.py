"""The project's chores; `nox -l` lists them."""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import nox

ROOT = Path(__file__).parent
LOCK = ROOT / "requirements" / "dev.txt"
TEST_LOCK = ROOT / "requirements" / "test.txt"
ADAPTERS_LOCK = ROOT / "requirements" / "adapters.txt"
RUNTIME_LOCK = ROOT / "requirements" / "runtime.txt"
NAMES = ("store", "outbox", "ops", "adapters", "console", "testing", "migrations")
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

CANDIDATE = "0.1.0rc1"
"""The release that is rehearsed."""
EXTRAS = "postgresql,mariadb,alerts,daemon,otel,console,langgraph"
SBOM = (
    *("cyclonedx_py", "requirements", "requirements/runtime.txt"),
    *("--pyproject", "pyproject.toml", "--mc-type", "library"),
)
KNOWN_TO_BE_VULNERABLE = "urllib3==1.26.4"

nox.options.sessions = ["lint", "typing", "tests", "docs"]


def _project() -> dict[str, Any]:
    return nox.project.load_toml(ROOT / "pyproject.toml")


def install(session: nox.Session) -> None:
    """Install the locked development set and the project itself."""
    session.install("--require-hashes", "-r", str(LOCK))
    session.install("--no-deps", "-e", ".")


@nox.session(python=["3.11", "3.12", "3.13", "3.14", "3.15"])
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
    """Send real conversations through all three stores under kills; words after `--` go to the proof."""
    install(session)
    session.run("python", "-m", "tests.proof", "--part", "chitchat", *(session.posargs or ("--short",)))


@nox.session
def proof(session: nox.Session) -> None:
    """Break everything that can be broken, and count what is lost; words after `--` go to the proof."""
    install(session)
    session.run("python", "-m", "tests.proof", *session.posargs)


@nox.session
def failover(session: nox.Session) -> None:
    """Fail over under load, with Patroni and Galera from packages; words after `--` go to the command."""
    install(session)
    session.run("python", "-m", "tests.failover", *session.posargs)


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
def instructions(session: nox.Session) -> None:
    """Count the instructions of an append, a read and a delivery; words after `--` go to the command."""
    session.install("--require-hashes", "-r", str(ADAPTERS_LOCK))  # OpenAI's session is counted beside
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "benchmarks.instructions", *session.posargs)


@nox.session
def everything(session: nox.Session) -> None:
    """Run every test, frameworks and pages included, as CI does; words after `--` go to pytest."""
    session.install("--require-hashes", "-r", str(ADAPTERS_LOCK))
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "pytest", "-m", "not comparison", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure the branches of the core that quick tests reach; words after `--` go to pytest."""
    install(session)
    session.install("coverage", "pytest-cov")  # not locked, as for the mutants
    words = session.posargs or ("-n", "2", "--dist", "loadfile", "-m", "not slow and not comparison")
    session.run("python", "-m", "pytest", "-q", "--cov", "--cov-report=", *words)
    session.run("coverage", "report", "--skip-covered", "--sort=cover", "--precision=1")


@nox.session
def sbom(session: nox.Session) -> None:
    """Write a CycloneDX bill of materials of what users install, with all extras but frameworks, into build/."""
    install(session)
    (ROOT / "build").mkdir(exist_ok=True)
    session.run("python", "-m", *SBOM, "--output-reproducible", "--output-file", str(ROOT / "build" / "sbom.json"))


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in what users install."""
    session.install("pip-audit")  # not locked: the newest knows the most
    with tempfile.TemporaryDirectory() as temporary:
        control = Path(temporary, "control.txt")
        control.write_text(f"{KNOWN_TO_BE_VULNERABLE}\n", encoding="utf-8")
        words = ("pip-audit", "--disable-pip", "--no-deps", "--requirement", str(control))
        told = str(session.run(*words, success_codes=[0, 1], silent=True, log=False))
    if not re.search(r"\b(PYSEC|GHSA|CVE)-", told):  # a mirror of the packages alone would find everything sound
        session.skip("the advisories cannot be reached, or the index knows none")
    session.run("pip-audit", "--strict", "--require-hashes", "--disable-pip", "--requirement", str(RUNTIME_LOCK))


@nox.session
def rehearsal(session: nox.Session) -> None:
    """Release a candidate to an index on this machine, install it by name, and use it as a stranger would."""
    session.install("build", "twine")
    with tempfile.TemporaryDirectory() as temporary, _served(Path(temporary, "index")) as address:
        folder, shelf = Path(temporary), Path(temporary, "index", "letopis")
        # The release is built from the sdist, which shows that all it takes is in there.
        session.run("python", "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT))
        (sdist,) = folder.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        project = folder / sdist.name.removesuffix(".tar.gz") / "pyproject.toml"
        text = project.read_text(encoding="utf-8")
        project.write_text(re.sub(r'^version = ".*"$', f'version = "{CANDIDATE}"', text, flags=re.MULTILINE))
        session.run("python", "-m", "build", "--outdir", str(shelf), str(project.parent))
        session.run("twine", "check", "--strict", *map(str, sorted(shelf.iterdir())))
        session.run("python", "-m", "venv", str(folder / "stranger"))
        command, python = folder / "stranger" / "bin" / "letopis", str(folder / "stranger" / "bin" / "python")
        by_name = (f"letopis[{EXTRAS}]=={CANDIDATE}", "langgraph")
        session.run(python, "-m", "pip", "install", "--quiet", "--extra-index-url", address, *by_name, external=True)
        session.run(python, "-m", "pip", "check", external=True)
        with session.chdir(folder):
            session.run(str(command), "--version", external=True)
            session.run(str(command), "demo", external=True)
        tutorials = [str(ROOT / "docs" / "tutorial" / name) for name in ("first-bot.md", "agent-langgraph.md")]
        session.run(python, "-m", "tests.support.pages", *tutorials, external=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Serve a folder as a package index: a list of links is all that one is."""
    Path(folder, "letopis").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


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
