"""The texts of alerts: in both languages, with right plurals, and with catalogues that are complete and compiled."""

from __future__ import annotations

import gettext
import io
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from letopis.outbox.alerting import texts
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.store.database import fault_rules
from letopis.store.database.faults import FaultClass

SINCE = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SEED = "⚠️ Не удалось сохранить ответ в историю мультичата. Попробуйте позже."


def catalogue(language: str) -> Catalog:
    path = texts.LOCALES / language / "LC_MESSAGES" / f"{texts.DOMAIN}.po"
    with path.open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def said_in_the_code() -> set[object]:
    found = extract_from_file("python", str(Path(texts.__file__)))
    return {tuple(said[:2]) if isinstance(said, tuple) else said for _, said, _, _ in found}


def texts_of(catalogue: gettext.GNUTranslations) -> dict[object, str]:
    """Without the header, which names the release of Babel."""
    return {key: text for key, text in vars(catalogue)["_catalog"].items() if key}


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_text_has_a_translation_and_every_translation_a_text(language: str) -> None:
    found = catalogue(language)
    kept = {message.id if isinstance(message.id, str) else tuple(message.id) for message in found if message.id}

    assert kept == said_in_the_code()
    assert not found.obsolete
    for message in found:
        if message.id:
            assert message.string
            assert all(message.string), message.id
            assert not message.fuzzy
            assert not list(message.check(found)), message.id


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_the_compiled_catalogue_is_that_of_the_text_file(language: str) -> None:
    """Run `pybabel compile -d outbox/letopis/outbox/alerting/locales -D letopis` after a change."""
    compiled = io.BytesIO()
    write_mo(compiled, catalogue(language))
    compiled.seek(0)
    path = texts.LOCALES / language / "LC_MESSAGES" / f"{texts.DOMAIN}.mo"
    with path.open("rb") as file:
        shipped = gettext.GNUTranslations(file)
    fresh = gettext.GNUTranslations(compiled)

    assert shipped.info()["plural-forms"] == fresh.info()["plural-forms"]
    assert texts_of(shipped) == texts_of(fresh)


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        ("ru", "ru"),
        ("ru-RU", "ru"),
        ("ru_RU.UTF-8", "ru"),
        ("RU", "ru"),
        ("en-GB", "en"),
        ("de", "en"),
        ("", "en"),
        (None, "en"),
        ("../../etc", "en"),
    ],
)
def test_the_language_of_a_locale(locale: str | None, expected: str) -> None:
    assert texts.language_of(locale) == expected


@pytest.mark.parametrize(
    ("count", "russian", "english"),
    [
        (0, "0 сообщений", "0 messages"),
        (1, "1 сообщение", "1 message"),
        (2, "2 сообщения", "2 messages"),
        (5, "5 сообщений", "5 messages"),
        (11, "11 сообщений", "11 messages"),
        (21, "21 сообщение", "21 messages"),
        (24, "24 сообщения", "24 messages"),
        (112, "112 сообщений", "112 messages"),
    ],
)
def test_counts(count: int, russian: str, english: str) -> None:
    assert (texts.messages(count, "ru"), texts.messages(count, "en")) == (russian, english)


@pytest.mark.parametrize(
    ("count", "russian"), [(1, "1 разговор"), (3, "3 разговора"), (12, "12 разговоров"), (101, "101 разговор")]
)
def test_counts_of_conversations(count: int, russian: str) -> None:
    assert texts.conversations(count, "ru") == russian


@pytest.mark.parametrize(
    ("seconds", "russian", "english"),
    [
        (-5, "менее секунды", "less than a second"),
        (1, "1 секунду", "1 second"),
        (42, "42 секунды", "42 seconds"),
        (59.9, "59 секунд", "59 seconds"),
        (60, "1 минуту", "1 minute"),
        (3 * 60 + 59, "3 минуты", "3 minutes"),
        (21 * 60, "21 минуту", "21 minutes"),
        (3_600, "1 час", "1 hour"),
        (2 * 3_600 + 5 * 60, "2 часа 5 минут", "2 hours 5 minutes"),
        (86_400, "1 день", "1 day"),
        (2 * 86_400 + 5 * 3_600 + 60, "2 дня 5 часов", "2 days 5 hours"),
        (11 * 86_400, "11 дней", "11 days"),
    ],
)
def test_durations(seconds: float, russian: str, english: str) -> None:
    assert (texts.duration(seconds, "ru"), texts.duration(seconds, "en")) == (russian, english)


def test_the_default_says_that_the_reply_is_kept() -> None:
    assert "Он не потерян, я продолжаю пытаться." in texts.user_stuck(needs_operator=False, locale="ru")
    assert "It is kept" in texts.user_stuck(needs_operator=True, locale="en")
    assert texts.user_stuck(needs_operator=True, locale="ru") != texts.user_stuck(needs_operator=False, locale="ru")


def test_the_sentence_that_users_of_older_bots_know_can_be_chosen() -> None:
    assert texts.user_stuck(needs_operator=False, style="seed", locale="ru") == SEED
    assert texts.user_stuck(needs_operator=True, style="seed", locale="ru-RU") == SEED


def test_nothing_is_promised_that_nobody_will_do() -> None:
    assert texts.user_stuck(needs_operator=False, promise=True, locale="ru").endswith("Сообщу, когда сохраню.")
    assert "Сообщу" not in texts.user_stuck(needs_operator=False, promise=False, locale="ru")


@pytest.mark.parametrize("locale", ["ru", "en"])
@pytest.mark.parametrize("kind", ["store_down", "conversation_blocked", "relay_silent"])
@pytest.mark.parametrize("recovered", [False, True])
def test_an_operator_learns_what_since_when_and_what_to_do(locale: str, kind: str, recovered: bool) -> None:
    title = texts.operator_title(kind, count=3, recovered=recovered, locale=locale)
    body = texts.operator_body(
        kind,
        outbox="bot.outbox.db",
        since=SINCE,
        seconds=1_860,
        reasons=["the table is missing [misconfigured 42P01]"],
        events=22,
        waiting=5,
        recovered=recovered,
        locale=locale,
    )

    assert title.startswith("Letopis: ")
    assert title != texts.operator_title(kind, count=3, recovered=not recovered, locale=locale)
    assert title != texts.operator_title(kind, count=3, recovered=recovered, still=True, locale=locale)
    assert "bot.outbox.db" in body
    assert texts.duration(1_860, locale) in body
    assert texts.messages(22, locale) in body
    assert texts.conversations(5, locale) in body
    assert ("letopis" in body.replace("bot.outbox.db", "")) is not recovered
    assert ("42P01" in body) is not recovered


@pytest.mark.parametrize("locale", ["ru", "en"])
def test_a_store_that_refuses_is_not_called_down(locale: str) -> None:
    reason = "so it is the history store: the event breaks a constraint (constraint t.x) [poison 23514]"
    down = texts.operator_title("store_down", locale=locale)
    refuses = texts.operator_title("store_down", reason=reason, locale=locale)
    takes = texts.operator_title("store_down", reason=reason, recovered=True, locale=locale)
    body = texts.operator_body(
        "store_down", outbox="o", since=SINCE, seconds=1, reasons=[reason], events=2, waiting=1, locale=locale
    )

    assert len({down, refuses, takes, texts.operator_title("store_down", recovered=True, locale=locale)}) == 4
    assert "t.x" in body
    assert "letopis doctor" in body


def test_an_end_with_nothing_left_says_so() -> None:
    body = texts.operator_body(
        "store_down", outbox="b", since=SINCE, seconds=60, reasons=(), events=0, waiting=0, recovered=True, locale="en"
    )

    assert body == "Outbox: b\nIt lasted 1 minute.\nEverything is delivered."


def test_an_id_cannot_forge_a_line_or_a_direction() -> None:
    listed = texts.operator_list(["чат 7", "a\u202eb", "x" * 300, "new\nline\x1b[31m"], 3, "ru")

    assert listed.splitlines() == [
        "- 'чат 7'",
        "- 'a\\u202eb'",
        f"- '{'x' * 79}…'",
        "- 'new\\nline\\x1b[31m'",
        "- и ещё 3",
    ]


def test_the_trial_alert_says_that_nothing_is_wrong() -> None:
    assert texts.trial_alert("bot.outbox.db", "en") == (
        "Letopis: test alert",
        "Alerts of the outbox bot.outbox.db arrive here. Nothing is wrong.",
    )
    assert "Всё в порядке" in texts.trial_alert("b", "ru")[1]


def reasons_of_the_store() -> list[str]:
    """Every sentence that a fault of the store may have, with its class and a code."""
    rules = [rule for rule in vars(fault_rules).values() if isinstance(rule, fault_rules.FaultRule)]
    assert len(rules) > 30
    return [f"{rule.reason} [{rule.fault_class} 12345]" for rule in rules]


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
        body = texts.operator_body(
            kind,
            outbox="o",
            since=SINCE,
            seconds=0.4,
            reasons=[reason],
            events=22,
            waiting=5,
            locale="ru_RU.UTF-8",
        )
        commands = re.sub(r"`[^`]*`|\[[^\]]*\]|\bUTC\b|\bLetopis\b|\bTLS\b|letopis_events\.approved", "", body)
        assert re.findall(r"[A-Za-z]{2,}", commands) == [], body
        assert "менее секунды" in body
        if "approved" in reason:
            assert "(ограничение letopis_events.approved)" in body


def test_what_is_known_of_a_fault_is_said_in_russian_too() -> None:
    said = [texts.reason_in(f"whatever [{one}]", "ru") for one in ("misconfigured disk-full", "misconfigured 42P01")]

    assert said == [
        "на диске хранилища истории нет места [misconfigured disk-full]",
        "хранилище истории ничего не принимает, пока не исправлена его настройка [misconfigured 42P01]",
    ]
    assert texts.reason_in("whatever [misconfigured disk-full]", None) == "whatever [misconfigured disk-full]"
