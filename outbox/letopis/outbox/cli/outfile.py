"""Where an export goes: a file that appears when it is whole, for its owner only; or stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.output import clean


@contextmanager
def written(file: str, *, force: bool) -> Iterator[BinaryIO]:
    """Open ``file`` for writing; ``-`` is stdout. Where the block raises, nothing appears under the name.

    :raises Ended: the file exists and ``force`` is not given.
    """
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(file)
    if target.exists() and not force:
        raise Ended(Exit.FAILED, f"{clean(file)} exists and is left as it is: name another file, or give --force")
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: there is nothing to appear
        with target.open("wb") as stream:
            yield stream
        return
    # For its owner only: these are conversations.
    part = target.with_name(f"{target.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123  # a descriptor, not a path
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
