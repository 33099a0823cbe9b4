"""Import what a bot needs from one place: ``from letopis import History, Message``."""

from __future__ import annotations

import pkgutil
import typing

# Each source root has a `letopis` folder with this file, the same in all of them. They are one package, and the wheel
# ships one of them.
__path__ = pkgutil.extend_path(__path__, __name__)

from letopis._public import NAMES, load

__all__ = NAMES  # pyright: ignore[reportUnsupportedDunderAll]

if typing.TYPE_CHECKING:
    from letopis.outbox import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
    from letopis.store import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

    __version__: str
else:

    def __getattr__(name: str) -> object:
        # The command lives below this package: `letopis --help` must not wait for SQLAlchemy.
        found = globals()[name] = load(name)
        return found


def __dir__() -> list[str]:
    return sorted((*__all__, "__version__"))
