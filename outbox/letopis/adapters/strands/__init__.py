"""Store the sessions of Strands Agents in a history; imported explicitly, needs ``letopis[strands]``."""

from letopis.adapters._messages import missing

try:  # only to name what is missing
    import strands as _strands  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "strands":
        raise
    raise missing("strands", "strands-agents", "strands") from error

from letopis.adapters.strands.repository import LetopisSessionRepository
from letopis.adapters.strands.storage import LetopisStorage

__all__ = ("LetopisSessionRepository", "LetopisStorage")
