"""Give the VoxPersona bot a history: its ``ConversationManager`` on Letopis, and an importer for its JSON folders.

::

    from letopis.adapters.voxpersona import ConversationManager

    conversation_manager = ConversationManager(CONVERSATIONS_DIR, store="postgresql://bot@db/history")
"""

from __future__ import annotations

from letopis.adapters.voxpersona.drop_in import ConversationManager
from letopis.adapters.voxpersona.importing import Imported, import_folder
from letopis.adapters.voxpersona.models import (
    Conversation,
    ConversationMessage,
    ConversationMetadata,
    generate_chat_name,
)
from letopis.adapters.voxpersona.reading import Note

__all__ = (
    "Conversation",
    "ConversationManager",
    "ConversationMessage",
    "ConversationMetadata",
    "Imported",
    "Note",
    "generate_chat_name",
    "import_folder",
)
