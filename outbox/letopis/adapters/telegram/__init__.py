"""Record the chats of a python-telegram-bot application in a history; needs ``letopis[telegram]``."""

try:  # only to name what is missing
    import telegram.ext as _telegram  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name not in ("telegram", "telegram.ext"):
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.telegram needs python-telegram-bot: pip install 'letopis[telegram]'", name="telegram"
    ) from error

from letopis.adapters.telegram.chats import LetopisChats
from letopis.adapters.telegram.persistence import LetopisPersistence
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.smart_send import Sent

__all__ = ("ChatHistory", "LetopisChats", "LetopisPersistence", "Sent", "unrecorded")
