"""Write what users are told about an incident, in their language.

The English texts are the keys of the catalogues in ``locales/``; a language without a catalogue gets English.
"""

from __future__ import annotations

from typing import Final, Literal

from letopis.outbox.alerting.language import catalogue, language_of

Style = Literal["plain", "seed"]
"""``plain`` says that the reply is kept and still being saved. ``seed`` says that saving failed, and to try later: the
sentence that users of older bots know."""

STYLES: Final[tuple[Style, ...]] = ("plain", "seed")


def user_stuck(*, needs_operator: bool, promise: bool = True, style: Style = "plain", locale: str | None = None) -> str:
    """Return what to tell a user whose messages are not in the history yet.

    :param needs_operator: it will not resolve without an operator.
    :param promise: the bot will notify them once it is saved.
    """
    gettext = catalogue(language_of(locale)).gettext
    if style == "seed":
        return gettext("⚠️ The reply could not be saved in the multichat history. Please try again later.")
    if needs_operator:
        first = gettext(
            "⚠️ The reply has not reached the chat history. It is kept, but an operator has to look into it."
        )
    else:
        first = gettext("⚠️ The reply has not reached the chat history yet. It is kept, and I keep trying.")
    second = gettext("I will tell you once it is saved.")
    return f"{first} {second}" if promise else first


def user_recovered(*, skipped: bool = False, locale: str | None = None) -> str:
    """Return what to tell a user who was notified before.

    :param skipped: an operator left the message out of the history.
    """
    gettext = catalogue(language_of(locale)).gettext
    if skipped:
        return gettext("⚠️ The reply could not be saved: the chat history has a mark in its place.")
    return gettext("✅ The reply is saved in the chat history.")
