"""Tell a history that has one of everything the console shows: for its tests and its pictures."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from letopis.console.insight import Insight
from letopis.outbox import History
from letopis.store import Message
from letopis.store.database.engines import create_store_engine
from letopis.store.model.parts import File, Reasoning, Text, ToolCall, ToolResult
from tests.support.relays import until as until

REFUSED: Final = "the word that the store refuses"
HOSTILE: Final = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "</textarea></pre><svg onload=window.hacked=3>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "javascript:window.hacked=4",
    "\u202egnp.exe\u2066 \u200b turned around",
)
"""What users send to find out whether it is escaped."""
HOSTILE_ID: Final = '"><script>window.hacked=5</script>/../?a=b&c#d %2F'

_QUESTIONS: Final = (
    "Which tea is good in the evening?",
    "How hot should the water be for green tea?",
    "Can I brew the same leaves twice?",
    "What goes well with Earl Grey?",
)
_ANSWERS: Final = (
    "Rooibos or chamomile: neither has caffeine, so both are fine before bed.",
    "About 75 to 80 °C. Boiling water makes green tea bitter.",
    "Yes, oolong and pu-erh even taste better the second time. Add half a minute to each infusion.",
    "Shortbread, lemon cake, or anything with dark chocolate.",
)


REFUSE: Final = {
    "sqlite": f"CREATE TRIGGER no BEFORE INSERT ON letopis_events WHEN NEW.data LIKE '%{REFUSED}%'"
    " BEGIN SELECT RAISE(ABORT, 'no'); END",
    "postgresql": f"ALTER TABLE letopis_events ADD CONSTRAINT no CHECK (data NOT LIKE '%{REFUSED}%')",
}


async def refuse(store_url: str) -> None:
    engine = create_store_engine(store_url, pool_size=1)
    async with engine.begin() as connection:
        await connection.execute(sa.text(REFUSE[engine.dialect.name]))
    await engine.dispose()


async def chat(
    history: History, name: str, *, owner: str, title: str | None, began: datetime, turns: int, model: str
) -> list[Message]:
    await history.start(owner, conversation_id=name, title=title)
    said: list[Message] = []
    for turn in range(turns):
        question = Message.user(_QUESTIONS[turn % 4], name="Ann")
        answer = Message.assistant(_ANSWERS[turn % 4], tokens=30 + turn * 7, metadata={"model": model})
        moment = began + timedelta(minutes=3 * turn)
        await history.append(name, question, owner=owner, occurred_at=moment)
        await history.append(name, answer, owner=owner, occurred_at=moment + timedelta(seconds=1 + turn % 5))
        await history.chat(name).sent(answer.id)
        said += [question, answer]
    return said


async def eventful(history: History, *, owner: str, began: datetime) -> None:
    """Have the conversation ``tea``, in which everything happens that can happen to a message."""
    name = "tea"
    said = await chat(history, name, owner=owner, title="An evening with tea", began=began, turns=3, model="large")
    await history.chat(name).edit(
        said[1].id, "Rooibos or chamomile. Neither has caffeine, so both are fine before bed."
    )
    await history.chat(name).react(said[1].id, "♥", actor="42")
    await history.chat(name).react(said[3].id, "rating", value=5)
    calls = Message.assistant(
        (Reasoning("The user wants to know the weather first."), ToolCall("call-1", "weather", {"city": "Oslo"})),
        tokens=55,
        metadata={"model": "large"},
    )
    result = Message.tool(ToolResult("call-1", {"degrees": 3, "sky": "snow"}))
    closing = Message.assistant(
        (
            Text("It snows in Oslo: a pot of black tea, then."),
            File("https://files/tea.pdf", "application/pdf", "tea.pdf"),
        ),
        tokens=80,
        metadata={"model": "large"},
    )
    await history.append(name, Message.user("And what fits the weather in Oslo?", name="Ann"), calls, result, closing)
    await history.chat(name).failed(closing.id, reason="the chat was closed")
    wrong, regretted = Message.user("Forget that I asked this."), Message.assistant("Of course.", tokens=4)
    await history.append(name, wrong, regretted)
    await history.chat(name).undo()
    secret = Message.user("My card number is 1234.")
    await history.append(name, secret)
    await history.chat(name).redact(secret.id)
    await history.append(name, Message.assistant("I removed that for good.", tokens=9, metadata={"model": "small"}))
    await history.chat(name).fork("tea-green", at=said[3].id, owner=owner, title="Only green tea")
    await history.append("tea-green", Message.user("Only green tea, please."), owner=owner)


async def hostile(history: History, *, owner: str) -> None:
    await history.start(owner, conversation_id=HOSTILE_ID, title=HOSTILE[0])
    for text in HOSTILE:
        message = Message.user(text, name=HOSTILE[1], metadata={"model": HOSTILE[1]})
        await history.append(HOSTILE_ID, message, owner=owner)
        await history.chat(HOSTILE_ID).react(message.id, "<b>x</b>")
    await history.append(HOSTILE_ID, Message.assistant(HOSTILE[2], metadata={"model": HOSTILE[0]}), owner=owner)


async def block(history: History, names: Sequence[str], *, owner: str) -> None:
    """Have conversations blocked, each by a message that the store refuses, while another one is delivered."""
    for name in names:
        await history.append(name, Message.user(f"{REFUSED} ({name})"), owner=owner)
        await history.append(name, Message.assistant("And an answer that waits behind it."), owner=owner)
        # Three refusals in a row, and nothing accepted, would be the store's fault.
        for _ in range(3):
            await history.append("steady", Message.user("all is well"), owner="40")
        await until(lambda name=name: is_blocked(history, name))  # type: ignore[misc]


async def is_blocked(history: History, name: str) -> bool:
    found = await Insight(history).stuck(limit=1_000, state="blocked")
    return any(one.conversation_id == name for one in found)


async def plant_blocked(history: History, count: int) -> None:
    """Have many conversations blocked at once, as a relay would leave them; for a history without a relay."""
    for number in range(count):
        await history.append(f"many-{number:02}", Message.user(f"message {number}"), owner="46")
    statement = (
        "UPDATE letopis_outbox_lanes SET state = 'blocked', attempts = 3, fault_class = 'poison',"
        " fault = 'the event breaks a constraint of the history store [poison 23514]'"
        " WHERE conversation_id LIKE 'many-%'"
    )
    await history.outbox.write(lambda connection: connection.exec_driver_sql(statement) and None)
