"""What is shipped: the contents of the sdist and the wheel, and the installed wheel beside a bot's own folders."""

import json
import os
import re
import sys
import tarfile
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from letopis.store.database.migrations import STORE
from tests.support.child import ran
from tests.support.paths import ROOT

ROOTS = ("store", "outbox", "migrations")
PACKAGES = ("store", "outbox", "ops", "adapters", "console", "examples", "testing", "migrations")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command to its end, and return what it printed; its errors are the failure's text."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    done = ran(*command, cwd=cwd, env={**clean, **environment}, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from the sdist, as a release would be."""
    pytest.importorskip("build", reason="needs build: the group pages")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.mark.slow
def test_another_checkout_builds_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """Unpacked from the sdist, with other times and modes of its files."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (copy,) = tmp_path.iterdir()
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (1_000_000_000, 1_000_000_000))

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "again", copy, cwd=tmp_path)

    first, again = ({path.name: path.read_bytes() for path in one.iterdir()} for one in (built, tmp_path / "again"))
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []


def sources() -> set[str]:
    """Every file of the three code folders, by its path in the wheel."""
    return {
        path.relative_to(ROOT / folder).as_posix()
        for folder in ROOTS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_source_file_the_licence_and_the_command_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = frozenset(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    code = {name for name in names if ".dist-info/" not in name}

    assert code == sources()
    assert {name.split("/")[0] for name in code} == {"letopis"}
    assert {f"letopis/{package}/py.typed" for package in PACKAGES} <= code
    for end in ("store", "outbox"):
        assert f"letopis/migrations/{end}/env.py" in code
        assert any(name.startswith(f"letopis/migrations/{end}/versions/") for name in code)
    assert f"{info}/licenses/LICENSE" in names
    assert "letopis = letopis.ops.cli:main" in entry_points


def test_the_front_door_is_the_same_in_each_source_root() -> None:
    """Whichever comes first on the path is imported."""
    doors = {(ROOT / root / "letopis" / "__init__.py").read_text(encoding="utf-8") for root in ROOTS}

    assert len(doors) == 1


def test_the_sdist_can_be_tested_and_documented_and_holds_nothing_of_the_workplace(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {
        *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "noxfile.py", "docs/conf.py", "docs/index.md"),
        *("requirements/dev.txt", "requirements/test.txt", "tests/conftest.py", "benchmarks/__main__.py"),
        "tests/support/servers/postgresql.py",
    }
    allowed = {"store", "outbox", "migrations", "tests", "benchmarks", "docs", "deploy", "requirements", ".ci"}

    assert needed <= names
    assert {name.split("/")[0] for name in names if "/" in name} <= allowed
    assert not [name for name in names if "__pycache__" in name or name.endswith((".db", ".lock", ".log"))]


def test_the_lock_has_what_the_project_asks_for() -> None:
    """Run `nox -s lock` after each change of a dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # Frameworks are not locked: their newest releases are what the adapters are tested with.
    frameworks = {name for line in project["dependency-groups"].pop("adapters") for name in Requirement(line).extras}
    extras = [lines for name, lines in project["project"]["optional-dependencies"].items() if name not in frameworks]
    groups = project["dependency-groups"].values()
    wanted = [
        Requirement(line)
        for line in (*project["project"]["dependencies"], *chain(*extras), *chain(*groups))
        if isinstance(line, str) and not line.startswith("letopis")
    ]
    lock = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", lock, re.MULTILINE))

    assert len(wanted) > 10
    assert [
        str(one) for one in wanted if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))
    ] == []
    assert "://" not in lock


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("installed") / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=site.parent)
    return site


def test_the_installed_wheel_is_not_disturbed_by_a_bots_own_folders(site: Path, tmp_path: Path) -> None:
    """The current folder precedes site-packages. Alembic itself migrates, with the two lines of the guide."""
    for folder in ("store", "outbox", "migrations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("OWNER = 'the bot'\n")
    (tmp_path / "alembic.ini").write_text(
        "[alembic]\nscript_location = letopis.migrations:store\npath_separator = os\n"
    )
    code = (
        "import letopis.store, letopis.outbox, letopis.migrations as m, sqlite3, store, outbox, migrations\n"
        "print(store.OWNER, outbox.OWNER, migrations.OWNER, sep='|')\n"
        "print(*sqlite3.connect('history.db').execute('SELECT version_num FROM letopis_version').fetchone())\n"
        "print(letopis.store.__file__, letopis.outbox.__file__, list(m.__path__)[0], sep='\\n')\n"
    )

    # The site comes first, so that this wheel is imported and not the editable install of these tests.
    alembic = ("alembic", "-x", f"url=sqlite:///{tmp_path / 'history.db'}", "upgrade", "head")
    run(sys.executable, "-m", *alembic, cwd=tmp_path, PYTHONPATH=str(site))
    owners, revision, *files = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()

    assert (owners, revision) == ("the bot|the bot|the bot", STORE.head)
    assert len(files) == 3
    assert [file for file in files if not Path(file).is_relative_to(site)] == []


def test_the_lock_for_users_is_part_of_ours() -> None:
    """What users are given is what was tested: the same versions and hashes, and no tool of ours."""
    pinned = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==.*?(?=^[A-Za-z0-9]|\Z)", re.MULTILINE | re.DOTALL)
    texts = [(ROOT / "requirements" / name).read_text() for name in ("dev.txt", "runtime.txt")]
    # What only some systems need of theirs, a tool of ours may need everywhere.
    texts = [re.sub(r" ; .* \\$", r" \\", text, flags=re.MULTILINE) for text in texts]
    ours, theirs = ({found["name"]: found.group() for found in pinned.finditer(text)} for text in texts)

    assert theirs.items() <= ours.items()
    assert all("--hash=sha256:" in one for one in theirs.values())
    assert not {"pytest", "ruff", "mypy", "nox", "rich"} & theirs.keys()
    assert {"sqlalchemy", "aiosqlite", "asyncpg", "asyncmy", "apprise", "uvicorn"} <= theirs.keys()
    assert all("://" not in text for text in texts)


@pytest.mark.slow
def test_the_bill_of_materials_is_the_lock_for_users(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="needs cyclonedx-bom: requirements/dev.txt")
    noxfile = pytest.importorskip("noxfile", reason="needs nox: requirements/dev.txt")

    run(sys.executable, "-m", *noxfile.SBOM, "--output-file", tmp_path / "sbom.json", cwd=ROOT)

    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    lock = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "letopis")
    listed = {one["name"]: one["version"] for one in bill["components"]}
    assert listed == dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", lock, re.MULTILINE))
