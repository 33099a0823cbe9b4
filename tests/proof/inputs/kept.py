"""Give every adapter what tools return, whatever it is."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from letopis.adapters.formats import _native
from letopis.store import ConversationStore
from tests.proof.rows import Row, row_of
from tests.proof.stores import fresh
from tests.support.adapters import ADAPTERS, differences, kinds_of, refusing


def row(what: str, store: str, folder: Path, *, control: bool = False) -> Row:
    """Return what came back through each adapter whose framework is installed; the control has no text to keep."""
    installed = [name for name, (package, _) in ADAPTERS.items() if _is_installed(package)][: 1 if control else None]
    if not installed:
        return Row(what=what, where=store, control=control, missing="no framework is installed: the group adapters")
    problems: list[str] = []
    for name in installed:
        below = folder / name
        below.mkdir(parents=True)
        with fresh(store, below, "kept") as other:
            if other.missing:
                return Row(what=what, where=store, control=control, missing=other.missing)
            asyncio.run(_migrate(other.url))
            with _without_text() if control else nullcontext():
                problems += asyncio.run(differences(name, below, other.url))
    return row_of(
        what,
        store,
        count=sum(len(kinds_of(name)) for name in installed),
        unit="items",
        problems=problems,
        notes=f"through {len(installed)} adapters",
        control=control,
    )


async def _migrate(url: str) -> None:
    """Give a server the tables that its operator would give it."""
    async with ConversationStore.open(url, migrate=True):
        return


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _without_text() -> Iterator[None]:
    sealing = _native.seal
    _native.seal = refusing
    try:
        yield
    finally:
        _native.seal = sealing
