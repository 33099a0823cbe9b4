"""Store Pydantic AI's conversations in a history; imported explicitly, needs ``letopis[pydantic-ai]``."""

try:  # only to name what is missing
    import pydantic_ai.conversation_store as _store  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "pydantic_ai":
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.pydantic_ai needs pydantic-ai-slim 2.66 or later: pip install 'letopis[pydantic-ai]'",
        name=error.name,
    ) from error

from letopis.adapters.pydantic_ai.store import LetopisConversationStore

__all__ = ("LetopisConversationStore",)
