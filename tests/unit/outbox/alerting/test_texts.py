"""The texts of alerts: in both languages, with right plurals, and of every fault."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from letopis.outbox.alerting import language
from letopis.outbox.alerting.alert_message import build_alert, in_conversations, messages, trial_alert
from letopis.outbox.alerting.channels import Alert
from letopis.outbox.alerting.incidents import IncidentKind, IncidentRecord, IncidentState
from letopis.outbox.alerting.language import duration, language_of, moment
from letopis.outbox.alerting.notifications import Notification, NotificationKind, PendingNotification
from letopis.store.database import fault_rules
from letopis.store.database.faults import FaultClass
from letopis.store.model.identifiers import uuid7
from tests.support.paths import ROOT

SINCE = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def some_pending(
    kind: IncidentKind,
    *,
    reason: str | None = None,
    names: tuple[str | None, ...] = (None,),
    recovered: bool = False,
    reminder: bool = False,
    seconds: float = 1_860,
    events: int = 22,
    conversations: int = 5,
) -> list[PendingNotification]:
    """Return what one channel is to be told about incidents that began at `SINCE`."""
    word = NotificationKind.RECOVERED if recovered else NotificationKind.STUCK
    notification = Notification(kind=word, number=1 + reminder, changed_at=SINCE)
    incident = IncidentRecord(
        incident_id=uuid7(),
        kind=kind,
        state=IncidentState.RESOLVED if recovered else IncidentState.FIRING,
        reason=reason,
        events=events,
        conversations=conversations,
        opened_at=SINCE,
        resolved_at=SINCE + timedelta(seconds=seconds) if recovered else None,
    )
    incidents = [replace(incident, incident_id=uuid7(), conversation_id=name) for name in names]
    return [
        PendingNotification(one, "channel:x", notification, one.conversation_id, SINCE, events) for one in incidents
    ]


def an_alert(kind: IncidentKind, *, locale: str | None, seconds: float = 1_860, **changes: Any) -> Alert:
    pending = some_pending(kind, seconds=seconds, **changes)
    return build_alert(pending, outbox="bot.outbox.db", now=SINCE + timedelta(seconds=seconds), locale=locale)


def test_the_language_of_a_locale() -> None:
    assert {language_of(locale) for locale in ("ru", "ru-RU", "ru_RU.UTF-8", "RU")} == {"ru"}
    assert {language_of(locale) for locale in ("en-GB", "de", "", None, "../../etc")} == {"en"}


HOUR, DAY = 3_600, 86_400


@pytest.mark.parametrize(
    ("say", "number", "russian", "english"),
    [
        (messages, 0, "0 сообщений", "0 messages"),
        (messages, 1, "1 сообщение", "1 message"),
        (messages, 2, "2 сообщения", "2 messages"),
        (messages, 11, "11 сообщений", "11 messages"),
        (messages, 21, "21 сообщение", "21 messages"),
        (in_conversations, 1, "в 1 разговоре", "in 1 conversation"),
        (in_conversations, 12, "в 12 разговорах", "in 12 conversations"),
        (duration, -5, "меньше секунды", "less than a second"),
        (duration, 1, "1 секунду", "1 second"),
        (duration, 42, "40 секунд", "40 seconds"),
        (duration, 43, "45 секунд", "45 seconds"),
        (duration, 57.6, "1 минуту", "1 minute"),
        (duration, 3 * 60 + 59, "4 минуты", "4 minutes"),
        (duration, HOUR - 20, "1 час", "1 hour"),
        (duration, 2 * HOUR + 4 * 60, "2 часа 5 минут", "2 hours 5 minutes"),
        (duration, DAY - 60, "1 день", "1 day"),
        (duration, 2 * DAY + 4 * HOUR + 50 * 60, "2 дня 5 часов", "2 days 5 hours"),
        (duration, 11 * DAY, "11 дней", "11 days"),
    ],
)
def test_numbers_and_times_in_both_languages(
    say: Callable[[float, str], str], number: float, russian: str, english: str
) -> None:
    assert (say(number, "ru"), say(number, "en")) == (russian, english)


@pytest.mark.parametrize(
    ("now", "russian", "english"),
    [
        (SINCE, "12:00 UTC", "12:00 UTC"),
        (SINCE.replace(hour=23, minute=59), "12:00 UTC", "12:00 UTC"),
        (SINCE.replace(day=26), "25 ноября, 12:00 UTC", "25 November, 12:00 UTC"),
        (SINCE.replace(year=2027, month=1, day=1), "25 ноября 2026, 12:00 UTC", "25 November 2026, 12:00 UTC"),
        (SINCE.replace(hour=11), "25 ноября, 12:00 UTC", "25 November, 12:00 UTC"),
    ],
)
def test_a_moment_is_the_time_of_the_day_and_the_day_if_it_is_another_one(
    now: datetime, russian: str, english: str
) -> None:
    assert (moment(SINCE, now=now, locale="ru"), moment(SINCE, now=now, locale="en")) == (russian, english)


@pytest.mark.parametrize("locale", ["ru", "en"])
@pytest.mark.parametrize("kind", IncidentKind)
@pytest.mark.parametrize("recovered", [False, True])
def test_an_operator_learns_what_since_when_and_what_to_do(locale: str, kind: IncidentKind, recovered: bool) -> None:
    names = tuple("abcde") if kind is IncidentKind.CONVERSATION_BLOCKED else (None,)
    events = 22 // len(names)
    reason = "the table is missing [misconfigured 42P01]"

    def alert(*, recovered: bool = recovered, reminder: bool = False) -> Alert:
        told = {"recovered": recovered, "reminder": reminder, "reason": reason, "names": names, "events": events}
        return an_alert(kind, locale=locale, **told)

    shown = alert()
    assert shown.title.startswith("Letopis: ")
    assert shown.title != alert(recovered=not recovered).title
    assert (shown.title != alert(reminder=True).title) is not recovered
    counts = (messages(events * len(names), locale), in_conversations(5, locale))
    assert all(one in shown.text for one in ("bot.outbox.db", duration(1_860, locale), *counts))
    assert ("letopis" in shown.text.replace("bot.outbox.db", "")) is not recovered
    assert ("42P01" in shown.text) is not recovered
    assert (shown.facts["state"], shown.facts["events"]) == ("resolved" if recovered else "firing", events * len(names))


@pytest.mark.parametrize("locale", ["ru", "en"])
def test_a_store_that_refuses_is_not_called_down(locale: str) -> None:
    reason = "so it is the history store: the event breaks a constraint (constraint t.x) [poison 23514]"
    alerts = [
        an_alert(IncidentKind.STORE_DOWN, reason=reason, recovered=recovered, locale=locale)
        for reason in (reason, None)
        for recovered in (False, True)
    ]

    assert len({alert.title for alert in alerts}) == 4
    assert "t.x" in alerts[0].text and "letopis doctor" in alerts[0].text


def test_the_trial_alert_and_an_end_say_that_nothing_is_wrong() -> None:
    assert "Nothing is wrong" in trial_alert("bot.outbox.db", "en")[1]
    assert "Всё в порядке" in trial_alert("bot.outbox.db", "ru")[1]
    alert = an_alert(IncidentKind.STORE_DOWN, recovered=True, seconds=60, events=0, conversations=0, locale="en")
    assert alert.text == "Outbox: bot.outbox.db\nIt lasted 1 minute.\nEverything is delivered."


def test_of_several_conversations_all_count_and_some_are_named_whose_ids_forge_nothing() -> None:
    names = ("чат 7", "a\u202eb", "x" * 300, "new\nline\x1b[31m", "e", "f", "g", "h")
    pending = some_pending(IncidentKind.CONVERSATION_BLOCKED, names=names, events=2, conversations=21)
    alert, again = (build_alert(group, outbox="b", now=SINCE, locale="ru") for group in (pending, pending[::-1]))

    assert (alert.title, alert.key) == ("Letopis: 21 разговор не сохраняется", again.key)
    assert "16 сообщений в 8 разговорах" in alert.text
    assert [line for line in alert.text.splitlines() if line.startswith("- ")] == [
        "- 'чат 7'",
        "- 'a\\u202eb'",
        f"- '{'x' * 79}…'",
        "- 'new\\nline\\x1b[31m'",
        "- 'e'",
        "- и ещё 3",
    ]


def test_an_alert_and_each_that_follows_have_keys_of_their_own() -> None:
    alerts = [
        an_alert(IncidentKind.STORE_DOWN, reminder=reminder, recovered=recovered, locale="en")
        for reminder, recovered in ((False, False), (True, False), (False, True))
    ]

    assert [(alert.key.partition("/")[2], alert.title.removeprefix("Letopis: ")) for alert in alerts] == [
        ("0.1/channel:x/stuck", "The history store is down"),
        ("0.2/channel:x/stuck", "still: The history store is down"),
        ("0.1/channel:x/recovered", "The history store is back"),
    ]
    assert all(alert.key.startswith(alert.facts["incidents"][0]) for alert in alerts)
    facts = [json.loads(json.dumps(dict(alert.facts))) for alert in alerts]
    assert [(one["kind"], one["conversations"], one["reminder"]) for one in facts] == [
        ("store_down", 5, reminder) for reminder in (False, True, False)
    ]


def reasons_of_the_store() -> list[str]:
    """Every sentence that a fault of the store may have, with its class and a code that no table knows."""
    rules = fault_rules.rules()
    assert len(rules) > 40
    return sorted(f"{rule.reason} [{rule.fault_class} 12345678]" for rule in rules)


NAMES = {
    *("UTC", "URL", "TLS", "Letopis", "SQLite", "MariaDB", "PostgreSQL", "PgBouncer"),
    *("max_allowed_packet", "sslmode", "sslrootcert", "ssl_ca", "pgbouncer", "true"),
}
"""Words that are the same in every language, besides commands and codes."""


def russian_alert(reason: str, kind: IncidentKind = IncidentKind.STORE_DOWN, *, seconds: float = 1_860) -> str:
    names = ("7", "8") if kind is IncidentKind.CONVERSATION_BLOCKED else (None,)
    alert = an_alert(kind, reason=reason, names=names, reminder=True, seconds=seconds, locale="ru_RU.UTF-8")
    return f"{alert.title}\n{alert.text}".replace("bot.outbox.db", "o")


def english_in(text: str) -> list[str]:
    """The words of a text that are neither Russian nor a name, a command or a code."""
    bare = re.sub(r"`[^`]*`|\[[^\]]*\]|letopis_events\.approved", "", text)
    return [word for word in re.findall(r"[A-Za-z_]{2,}", bare) if word not in NAMES]


@pytest.mark.parametrize(
    "reason",
    [
        *reasons_of_the_store(),
        "the event breaks a constraint of the history store (constraint letopis_events.approved) [poison 23514]",
        "the history store holds this conversation up to sequence 0 [lost]",
        "late",
        "something that nobody foresaw",
        "3 events are missing: they were deleted [incomplete log]",
        *(f"an English sentence [{one} {code}]" for one in FaultClass for code in ("disk-full", "moved", "tls-host")),
    ],
)
def test_a_russian_alert_holds_no_english_sentence(reason: str) -> None:
    for kind in IncidentKind:
        text = russian_alert(reason, kind)
        assert english_in(text) == [], text
        if "approved" in reason:
            assert "(ограничение letopis_events.approved)" in text


def test_an_english_sentence_would_be_found() -> None:
    assert english_in("Причина: the connection was lost; добавьте ?pgbouncer=true в URL") == [
        *("the", "connection", "was", "lost")
    ]


OF_EACH_TABLE = ("23514", "08006", "1062", "SQLITE_BUSY", "not-connected", "refused", "tls-host", "ENOSPC")


@pytest.mark.parametrize("code", OF_EACH_TABLE)
def test_a_known_code_is_said_in_russian_as_exactly_as_in_english(code: str) -> None:
    rule = fault_rules.rule_of_code(code)
    assert rule is not None
    said = language.reason_in(f"whatever [{rule.fault_class} {code}]", "ru")
    assert said == f"{language.catalogue('ru').gettext(rule.reason)} [{rule.fault_class} {code}]"
    assert english_in(said) == []


def test_codes_of_ours_are_said_in_russian() -> None:
    """Each code that a module of Letopis gives a fault, read from the code itself."""
    paths = (*(ROOT / "store").rglob("*.py"), *(ROOT / "outbox").rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths if "testing" not in path.parts]
    found = {code for text in texts for code in re.findall(r'code="([a-z-]+)"', text)}
    assert {"identity", "stranger", "deadline", "no-wal"} <= found

    def said(fault: str) -> str:
        return language.reason_in(f"whatever [{fault}]", "ru").partition(" [")[0]

    general = set(map(said, FaultClass))
    vague = {code for code in found if {said(f"misconfigured {code}"), said(f"unclassified {code}")} <= general}
    # The first is a peer that speaks another protocol, and known by the driver's table as unavailable.
    assert vague <= {"protocol"}


def test_a_whole_russian_alert() -> None:
    assert russian_alert("the connection to the history store was lost [unavailable disconnected]") == (
        "Letopis: напоминание: хранилище истории недоступно\n"
        "Файл: o\n"
        "С 12:00 UTC, уже 31 минуту.\n"
        "Причина: соединение с хранилищем истории потеряно [unavailable disconnected]\n"
        "Ждут доставки: 22 сообщения в 5 разговорах. Ничего не потеряно.\n"
        "Попытки повторяются автоматически; подробности: `letopis status`."
    )
    assert "Только что, в 12:00 UTC." in russian_alert("a password [misconfigured 28P01]", seconds=0.2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(IncidentKind.HISTORY_INCOMPLETE, "[incomplete log]"), (IncidentKind.CONVERSATION_BLOCKED, "gone [lost]")],
)
def test_an_alert_about_a_loss_does_not_say_that_nothing_is_lost(kind: IncidentKind, reason: str) -> None:
    assert "Ничего не потеряно" not in russian_alert(reason, kind)
    assert "Ничего не потеряно" in russian_alert("refused [poison 23514]", kind=IncidentKind.CONVERSATION_BLOCKED)
