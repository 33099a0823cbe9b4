"""Record the chats of an aiogram bot in a history; imported explicitly, needs ``letopis[aiogram]``."""

try:  # only to name what is missing
    import aiogram as _aiogram  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "aiogram":
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.aiogram needs aiogram: pip install 'letopis[aiogram]'", name="aiogram"
    ) from error

from letopis.adapters.aiogram.chats import LetopisChats
from letopis.adapters.aiogram.recording import RecordingRequestHandler
from letopis.adapters.aiogram.storage import LetopisFsmStorage
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.smart_send import Sent

__all__ = ("ChatHistory", "LetopisChats", "LetopisFsmStorage", "RecordingRequestHandler", "Sent", "unrecorded")
