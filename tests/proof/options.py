"""Tell a part of the proof how long to run, from which seed, and in which folder."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.proof.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a part is given.

    :ivar rounds: how often what chance decides alone is done, each time with an empty store and the next seed.
    """

    short: bool
    seed: int
    folder: Path
    rounds: int = 1

    def many(self, whole: int, short: int) -> int:
        return short if self.short else whole

    def tell(self, words: str) -> None:
        """Say on standard error how far it is."""
        print(words, file=sys.stderr, flush=True)


Part = Callable[[Options], Iterable[Row]]
"""A part of the proof: yields its rows as they come. It runs in a process of its own and may break that."""
