"""Store the state of Microsoft Agent Framework in a history; imported explicitly, needs ``letopis[agent-framework]``.

::

    agent = Agent(client, context_providers=[LetopisHistoryProvider(history)])
    response = await agent.run("What is tea?", session=AgentSession(session_id="chat-1"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from letopis.adapters._messages import missing

try:  # only to name what is missing
    import agent_framework as _framework  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "agent_framework":
        raise
    raise missing("agent_framework", "agent-framework-core", "agent-framework") from error

from letopis.adapters.agent_framework.history_provider import LetopisHistoryProvider

if TYPE_CHECKING:
    from letopis.adapters.agent_framework.checkpoint_storage import LetopisCheckpointStorage
    from letopis.adapters.agent_framework.session_store import LetopisSessionStore

__all__ = ("LetopisCheckpointStorage", "LetopisHistoryProvider", "LetopisSessionStore")


def __getattr__(name: str) -> Any:
    # Imported on first use, because the framework emits a warning when its experimental session stores are touched.
    if name == "LetopisSessionStore":
        from letopis.adapters.agent_framework.session_store import LetopisSessionStore

        return LetopisSessionStore
    if name == "LetopisCheckpointStorage":
        from letopis.adapters.agent_framework.checkpoint_storage import LetopisCheckpointStorage

        return LetopisCheckpointStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
