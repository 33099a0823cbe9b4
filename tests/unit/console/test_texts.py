"""The texts of the console: plurals, and numbers as each language writes them."""

import pytest

from letopis.console.i18n import language, preferred
from letopis.console.words import Words


@pytest.mark.parametrize(
    ("accepted", "code"),
    [
        ("", "en"),
        ("ru", "ru"),
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("de,en;q=0.5,ru;q=0.7", "ru"),
        ("en-GB,ru;q=0.1", "en"),
        ("de", "en"),
        ("ru;q=x,,;q=1", "en"),
    ],
)
def test_the_language_of_a_browser(accepted: str, code: str) -> None:
    assert preferred(accepted) == code


def test_numbers_and_times() -> None:
    english, russian = language("en"), language("ru")
    assert (english.number(1_234_567), russian.number(1_234_567)) == ("1,234,567", "1\u202f234\u202f567")
    assert (english.latency(1.26), russian.latency(1.26)) == ("1.3 s", "1,3 с")
    assert (english.latency(None), english.latency(12.6), english.latency(140)) == ("–", "13 s", "2 minutes")
    assert (english.size(0), english.size(2048), english.size(5 * 1024**2)) == ("0 bytes", "2 kB", "5 MB")


def test_plurals() -> None:
    words = Words(language("ru"))
    one, few, many = (words.done("retry", count).split(" ", 1)[1] for count in (1, 2, 5))
    assert (one, few) == ("разговор доставляется снова.", "разговора доставляются снова.")
    assert many == "разговоров доставляются снова."
    assert words.done("no such action", 1) == ""
    assert words.fault_class("made up") == "made up"
