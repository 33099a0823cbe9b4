"""Keep the checkpoints and the memory of LangGraph in a history; imported explicitly, needs ``letopis[langgraph]``."""

try:
    import langgraph.checkpoint.base as _base  # noqa: F401 - only to say what is missing
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] not in ("langgraph", "langchain_core"):
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.langgraph needs langgraph-checkpoint: pip install 'letopis[langgraph]'", name=error.name
    ) from error

from letopis.adapters.langgraph.checkpoints import CheckpointIncomplete
from letopis.adapters.langgraph.saver import LetopisSaver

__all__ = ("CheckpointIncomplete", "LetopisSaver")
