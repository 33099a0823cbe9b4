"""What is imported from `letopis`, and what a public name says of where it is imported from."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import letopis
import letopis.outbox


@pytest.mark.parametrize("name", letopis.__all__)
def test_every_name_is_the_one_of_its_package(name: str) -> None:
    found = getattr(letopis, name)

    assert any(getattr(door, name, None) is found for door in (letopis.store, letopis.outbox))
    assert name in dir(letopis)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Histroy'"):
        letopis.Histroy  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert letopis.__version__[0].isdigit()


def test_a_public_name_says_where_it_is_imported_from() -> None:
    assert repr(letopis.History) == "<class 'letopis.outbox.History'>"
    assert {getattr(letopis.outbox, name).__module__ for name in letopis.outbox.__all__} == {"letopis.outbox"}
    bounds = letopis.outbox.Bounds(max_events=3)
    assert pickle.loads(pickle.dumps(bounds)) == bounds  # noqa: S301


def test_the_command_and_the_packages_start_without_sqlalchemy() -> None:
    code = "import letopis, letopis.outbox, letopis.outbox.cli, sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "False"


def test_a_history_is_imported_without_what_few_bots_use() -> None:
    code = "import sys; from letopis import History; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    modules = done.stdout.split()
    ours = [module for module in modules if module.startswith("letopis.")]
    rooms = {"outbox.alerting", "outbox.drafts", "outbox.operations", "store.database.schema", "store.search"}
    assert not {f"letopis.{room}" for room in rooms} & set(ours)
    assert not {"aiosqlite", "alembic", "anyio._backends", "apprise", "filelock"} & set(modules)
    assert len(ours) <= 66, "imported by each program that names History: import it where it is used"
