"""Let the disk fail with errors, no space, no speed, no right to write, no file; nothing acknowledged is lost."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.options import Options
from tests.proof.rows import Row


def prove(options: Options) -> Iterator[Row]:
    """Let the disk fail."""
    from tests.proof.io import part  # the bots of this part are modules of it: they need not import all of it

    yield from part.prove(options)
