"""Describe states, faults, roles and actions in the reader's language; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letopis.console.i18n import Language


class Words:
    """The texts for values that Letopis defines; an unknown value is shown unchanged."""

    def __init__(self, language: Language) -> None:
        self._language = language

    def state(self, name: str) -> str:
        """Return the state of a lane, a conversation or an incident."""
        _ = self._language.gettext
        return _of(
            name,
            {
                "ready": _("ready"),
                "retrying": _("retrying"),
                "blocked": _("blocked"),
                "paused": _("paused"),
                "active": _("active"),
                "archived": _("archived"),
                "deleted": _("deleted"),
                "pending": _("watched"),
                "firing": _("open"),
                "resolved": _("over"),
            },
        )

    def fault_class(self, name: str | None) -> str:
        """Return a class of faults."""
        _ = self._language.gettext
        return _of(
            name or "",
            {
                "": _("no fault"),
                "poison": _("refused by the store"),
                "diverged": _("something else is stored"),
                "damaged": _("damaged in the outbox"),
                "lost": _("lost"),
                "unavailable": _("store unavailable"),
                "misconfigured": _("store misconfigured"),
                "wrong_store": _("wrong store"),
                "unknown_outcome": _("outcome unknown"),
                "conflict": _("conflict"),
                "unclassified": _("unknown fault"),
            },
        )

    def incident(self, kind: str) -> str:
        """Return the subject of an incident."""
        _ = self._language.gettext
        return _of(
            kind,
            {
                "store_down": _("The history store is down"),
                "conversation_blocked": _("A conversation is stuck"),
                "relay_silent": _("The relay is silent"),
                "history_incomplete": _("The history has lost events"),
                "erasures_missing": _("The history store has forgotten erasures"),
            },
        )

    def recipient(self, kind: str) -> str:
        """Return the kind of recipient that was notified."""
        _ = self._language.gettext
        return _of(
            kind, {"channel": _("operators' channel"), "user": _("user"), "conversation": _("the user of conversation")}
        )

    def notification(self, about: str, state: str) -> str:
        """Return the state of a notification."""
        _ = self._language.gettext
        recovered = about == "recovered"
        return _of(
            state,
            {
                "sending": _("being notified"),
                "retrying": _("could not be notified yet"),
                "sent": _("notified that it is over") if recovered else _("notified"),
                "failed": _("could not be notified"),
            },
        )

    def role(self, name: str) -> str:
        """Return the author's role of a message."""
        _ = self._language.gettext
        return _of(
            name,
            {
                "user": _("User"),
                "assistant": _("Assistant"),
                "system": _("System"),
                "developer": _("Developer"),
                "tool": _("Tool"),
            },
        )

    def action(self, name: str) -> str:
        """Return the description of an operator's action."""
        _ = self._language.gettext
        return _of(
            name,
            {
                "retry": _("Retry"),
                "fix": _("Fix"),
                "skip": _("Skip"),
                "skip_missing": _("Skip missing events"),
                "restore": _("Put the original back"),
                "pause": _("Pause a conversation"),
                "resume": _("Resume a conversation"),
                "rebind": _("Bind to another store"),
                "pause_relay": _("Pause delivery"),
                "resume_relay": _("Resume delivery"),
                "verify": _("Verify"),
                "export": _("Export"),
                "sign_in": _("Sign-in"),
                "redact": _("Erase the content of a message"),
                "rename": _("Rename"),
                "archive": _("Archive"),
                "unarchive": _("Put back from the archive"),
                "reset": _("Reset"),
                "delete": _("Delete"),
                "test_alert": _("Test alert"),
            },
        )

    def done(self, action: str, count: int) -> str:
        """Return the text shown after an action."""
        _, ngettext = self._language.gettext, self._language.ngettext
        counted = {"count": self._language.number(count)}
        texts = {
            "retry": ngettext(
                "%(count)s conversation is being retried.", "%(count)s conversations are being retried.", count
            ),
            "resume": ngettext("%(count)s conversation is resumed.", "%(count)s conversations are resumed.", count),
            "pause": ngettext("%(count)s conversation is paused.", "%(count)s conversations are paused.", count),
            "skip": ngettext(
                "%(count)s event was skipped; the history holds a mark in its place.",
                "%(count)s events were skipped; the history holds marks in their places.",
                count,
            ),
            "skip_missing": ngettext(
                "%(count)s missing event was skipped.", "%(count)s missing events were skipped.", count
            ),
            "fix": _("The event was corrected; its original is kept."),
            "restore": _("The original event is restored."),
            "pause_relay": _("Delivery is paused."),
            "resume_relay": _("Delivery is resumed."),
            "verify": _("The check has started."),
            "redact": _("The content of the message is erased. The history store follows with the next delivery."),
            "rename": _("The conversation has its new title."),
            "archive": _("The conversation is in the archive."),
            "unarchive": _("The conversation is back in the list."),
            "reset": _("The conversation is empty. The history store erases its content with the next delivery."),
            "delete": _("The conversation is deleted. The history store erases its content with the next delivery."),
            "test_alert": ngettext(
                "%(count)s channel took the test alert.", "%(count)s channels took the test alert.", count
            ),
            "nothing": _("Nothing left to do: it has moved on."),
            "signed_in": _("You are signed in."),
            "signed_out": _("You are signed out."),
        }
        return texts[action] % counted if action in texts else ""


def _of(name: str, texts: Mapping[str, Any]) -> str:
    return str(texts.get(name, name))
