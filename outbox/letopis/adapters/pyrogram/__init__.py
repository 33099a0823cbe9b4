"""Record what a client of Pyrogram or its fork Kurigram receives and sends; needs ``letopis[pyrogram]``."""

try:  # only to name what is missing
    import pyrogram as _pyrogram  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "pyrogram":
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.pyrogram needs Kurigram, or Pyrogram: pip install 'letopis[pyrogram]'", name="pyrogram"
    ) from error

from letopis.adapters.pyrogram.recorder import LetopisRecorder
from letopis.adapters.telegram_core.chat_history import ChatHistory
from letopis.adapters.telegram_core.outgoing import unrecorded
from letopis.adapters.telegram_core.smart_send import Sent

__all__ = ("ChatHistory", "LetopisRecorder", "Sent", "unrecorded")
