"""How-to pages are right: their code runs as it stands, and prints what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letopis import History, Message
from letopis.adapters import formats
from letopis.store import StoreFault
from letopis.testing import FakePlatform, FaultyStore, deliver_all
from tests.support.pages import blocks, follow, programs, run_program
from tests.support.paths import ROOT

HOWTO = ROOT / "docs" / "howto"
PAGES = {
    "event-loops-and-threads.md": [
        *("['What is tea?']\n", "3\n", "['first run', 'second run']\n", "True\n", "1 True\n", "1\n"),
    ],
    "ids-and-retries.md": None,
    "langgraph.md": None,
    "projections.md": ["chat-1 5\n"],
    "provider-formats.md": None,
    "rebuild.md": [""],
    "which-verb-removes-what.md": None,
    "without-asyncio.md": [
        "user What is tea?\nassistant A leaf.\nin the history store: True\n",
        *("True\n", "Tea is a leaf.\n", "chat-1\n", "True\n"),
    ],
}
"""What each program of a page prints; ``None`` if the page shows it."""
SHOWS_A_PART = {"ids-and-retries.md"}
"""Whose second block is no program."""


@pytest.mark.parametrize("page", PAGES)
def test_programs_of_a_page_print_what_it_says(page: str, tmp_path: Path) -> None:
    """All of them in one folder and one process, which is quicker than a process each."""
    if page == "langgraph.md":
        pytest.importorskip("langgraph.graph", reason="needs langgraph: pip install --group adapters")
    found = list(blocks((HOWTO / page).read_text(encoding="utf-8")))
    code = programs(HOWTO / page)
    names = [f"block{number}.py" for number in range(1 if page in SHOWS_A_PART else len(code))]
    for name, program in zip(names, code, strict=False):
        (tmp_path / name).write_text(program, encoding="utf-8")

    done = run_program(f"import runpy\nfor name in {names}:\n    runpy.run_path(name)\n    print('---')", tmp_path)

    # An old release of a framework warns of what is deprecated in itself, and quotes the line.
    lines = done.stderr.splitlines()
    others = [line for line in lines if "DeprecationWarning" not in line and not line.startswith("  ")]
    assert (done.returncode, others if page == "langgraph.md" else lines) == (0, []), done.stderr
    shown = PAGES[page]
    expected = [one.body for one in found if one.language == "text"] if shown is None else shown
    assert done.stdout.split("---\n") == [*expected, ""]


def test_the_tests_of_a_bot_pass_as_the_page_shows(tmp_path: Path) -> None:
    (step,) = follow(HOWTO / "testing.md", tmp_path)

    assert step.holds, str(step)


async def test_the_session_for_aiogram_hands_calls_to_the_platform() -> None:
    types = pytest.importorskip("aiogram.types", reason="needs aiogram: pip install --group adapters")
    from aiogram import Bot
    from aiogram.exceptions import TelegramForbiddenError

    (program,) = (body for body in programs(HOWTO / "testing.md") if "BaseSession" in body)
    names: dict[str, Any] = {}
    exec(compile(program, "testing.md", "exec"), names)  # noqa: S102 - our own page
    platform = FakePlatform()
    bot = Bot("7000:a-secret", session=names["FakeSession"](platform))

    sent = await bot.send_message(7, "hi", reply_markup=types.ReplyKeyboardRemove())
    platform.fail("sendMessage", 403, "Forbidden: bot was blocked by the user")
    with pytest.raises(TelegramForbiddenError, match="blocked"):
        await bot.send_message(7, "hi again")

    assert (sent.chat.id, sent.text, platform.texts(chat=7)) == (7, "hi", ["hi"])


async def test_a_store_that_is_away_takes_no_delivery_and_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.testing.store.MAX_IDLE_STEPS", 2)
    store = FaultyStore(tmp_path / "bot.history.db")
    async with History(tmp_path / "bot.outbox.db", store=store, relay=False) as bot:
        await bot.append("chat-1", Message.user("hi"))
        store.take_away()

        with pytest.raises(TimeoutError, match="taken nothing"):
            await deliver_all(bot)
        for read in (store.messages("chat-1"), store.ping(), store.identity(), store.prepare()):
            with pytest.raises(StoreFault, match="taken away"):
                await read

        store.give_back()
        store.refused = {"chat-1"}
        with pytest.raises(TimeoutError, match="taken nothing"):
            await deliver_all(bot)
        store.refused = ()
        assert not await store.messages("chat-1")
    await store.close()


def test_every_format_is_in_the_guide_and_in_the_reference() -> None:
    (folder,) = formats.__path__
    names = sorted(path.stem for path in Path(folder).glob("[a-z]*.py"))
    guide = (HOWTO / "provider-formats.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")

    assert names == ["anthropic", "gemini", "openai_chat", "openai_responses"]
    assert [name for name in names if f"| `{name}` |" not in guide] == []
    assert [name for name in names if f"letopis.adapters.formats.{name}\n" not in reference] == []
