"""Store the sessions of Google's ADK in a history; imported explicitly, needs ``letopis[google-adk]``."""

try:  # only to name what is missing
    from google.adk.sessions.session import Session as _Session  # noqa: F401  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("google"):
        raise
    raise ModuleNotFoundError(
        "letopis.adapters.google_adk needs google-adk: pip install 'letopis[google-adk]'", name=error.name
    ) from error

from letopis.adapters.google_adk.sessions import LetopisSessionService

__all__ = ("LetopisSessionService",)
