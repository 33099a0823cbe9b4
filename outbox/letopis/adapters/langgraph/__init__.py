"""Store LangGraph's checkpoints and memory in a history; imported explicitly, needs ``letopis[langgraph]``."""

try:  # only to name what is missing
    import langgraph.checkpoint.base as _base  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] not in ("langgraph", "langchain_core"):
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.langgraph needs langgraph-checkpoint: pip install 'letopis[langgraph]'", name=error.name
    ) from error

from letopis.adapters._blocking import InHomeLoop
from letopis.adapters.langgraph.checkpoints import CheckpointIncomplete
from letopis.adapters.langgraph.saver import LetopisSaver
from letopis.adapters.langgraph.store import LetopisStore

__all__ = ("CheckpointIncomplete", "InHomeLoop", "LetopisSaver", "LetopisStore")
