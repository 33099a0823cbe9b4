"""Sessions and storage of Strands in a history."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("strands", reason="needs strands-agents: pip install 'letopis[strands]'")

from strands import Agent
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.multiagent import GraphBuilder
from strands.session import FileSessionManager, RepositorySessionManager
from strands.storage import InMemoryStorage
from strands.types.exceptions import SessionException, StorageError
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from letopis import ABSENT, File, History, Message, Reasoning, Text, ToolCall, ToolResult
from letopis.adapters._blocking import InHomeLoop
from letopis.adapters.strands import LetopisSessionRepository, LetopisStorage
from letopis.adapters.strands.storage import key_at, place_of, range_of
from tests.support.bots.strands import FakeModel
from tests.support.story import nothing

CALL = {"toolUse": {"toolUseId": "c1", "name": "look", "input": {"at": "tea", "n": 1}}}
RESULT = {"toolResult": {"toolUseId": "c1", "status": "success", "content": [{"text": "a cup of tea, I think"}]}}
MESSAGES: list[Any] = [
    {"role": "user", "content": [{"text": "What?"}, {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}]},
    {
        "role": "assistant",
        "content": [
            {"reasoningContent": {"reasoningText": {"text": "A picture", "signature": "c2VjcmV0"}}},
            {"reasoningContent": {"redactedContent": b"\x00\xff"}},
            CALL,
        ],
        "metadata": {"usage": {"inputTokens": 1}},
    },
    {"role": "user", "content": [RESULT], "tracking_id": "t-1"},
    {"role": "assistant", "content": [{"text": "A cup"}, {"cachePoint": {"type": "default"}}]},
    {"role": "user", "content": [{"toolResult": {"toolUseId": "c2", "status": "error", "content": [{"json": [1]}]}}]},
    {"role": "user", "content": [{"text": "Same again"}]},
    {"role": "user", "content": [{"text": "Same again"}]},
    {"role": "assistant", "content": []},
]


def said(text: str, number: int) -> SessionMessage:
    return SessionMessage.from_message({"role": "user", "content": [{"text": text}]}, number)


def texts(messages: list[SessionMessage]) -> list[str]:
    return [one.to_message()["content"][0]["text"] for one in messages]


def agent_on(repository: LetopisSessionRepository, model: FakeModel | None = None, **options: Any) -> Agent:
    session = RepositorySessionManager("chat-1", session_repository=repository)
    chosen = FakeModel(nothing) if model is None else model
    return Agent(model=chosen, session_manager=session, callback_handler=None, agent_id="bot", **options)


def agent_of(name: str, **state: Any) -> SessionAgent:
    managed = SlidingWindowConversationManager().get_state()
    return SessionAgent(agent_id=name, state=state, conversation_manager_state=managed)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[History]:
    """A history in a thread of its own, which delivers nothing."""
    history = History(tmp_path / "bot.outbox.db", relay=False, own_thread=True, read_timeout=60)
    yield history
    asyncio.run(history.close())


@pytest.fixture
def away(tmp_path: Path) -> Iterator[History]:
    """A history in a thread of its own, whose store cannot be reached."""
    url = "postgresql://nobody@127.0.0.1:1/nowhere"
    history = History(tmp_path / "bot.outbox.db", store=url, relay=False, own_thread=True)
    yield history
    asyncio.run(history.close())


@pytest.fixture
def repository(shared: History) -> LetopisSessionRepository:
    made = LetopisSessionRepository(shared, owner="42")
    made.create_session(Session("chat-1", SessionType.AGENT))
    made.create_agent("chat-1", agent_of("bot"))
    return made


def known(history: History, deed: Any) -> Any:
    return asyncio.run(deed(history))


def test_messages_come_back_as_they_were(repository: LetopisSessionRepository, shared: History) -> None:
    given = [SessionMessage.from_message(message, number) for number, message in enumerate(MESSAGES)]
    for one in given:
        repository.create_message("chat-1", "bot", one)

    assert repository.list_messages("chat-1", "bot") == given
    assert repository.list_messages("chat-1", "bot", limit=2, offset=3) == given[3:5]
    assert repository.list_messages("chat-1", "bot", limit=0) == repository.list_messages("chat-1", "another") == []
    assert repository.read_message("chat-1", "bot", 6) == given[6]
    assert repository.read_message("chat-1", "bot", 99) is None
    asked, called, result, _, failed, again, *_ = known(shared, lambda history: history.messages("chat-1"))
    assert asked.content == (Text("What?"), File("data:image/png;base64,iVBORw==", "image/png"))
    assert called.content[::2] == (Reasoning("A picture"), ToolCall("c1", "look", {"at": "tea", "n": 1}))
    assert (result.role, result.content) == ("tool", (ToolResult("c1", "a cup of tea, I think"),))
    assert (failed.content, again.content) == ((ToolResult("c2", [1], "error"),), "Same again")
    assert known(shared, lambda history: history.chat("chat-1").conversation()).owner_id == "42"


def test_the_same_deeds_as_on_files(repository: LetopisSessionRepository, tmp_path: Path) -> None:
    """Random ones, of several agents, with the framework's own repository beside."""
    theirs: Any = FileSessionManager("chat-1", storage_dir=str(tmp_path / "files"))
    theirs.create_agent("chat-1", agent_of("bot"))
    both: Any = (repository, theirs)
    for one in both:
        one.create_agent("chat-1", agent_of("planner"))
    chance, counts = random.Random(1), {"bot": 0, "planner": 0}
    redacted = said("redacted", 0).message
    for step in range(150):
        name = chance.choice(list(counts))
        number = chance.randrange(counts[name]) if counts[name] else 0
        created = ("create_message", name, said(f"message {step}", counts[name]))
        update = SessionMessage(said("x", 0).message, number, redact_message=redacted, updated_at="now")
        updated = ("update_message", name, update) if counts[name] else created
        listed = ("list_messages", name, chance.choice([None, 0, 3]), chance.randrange(40))
        others = [("read_message", name, number), ("update_agent", agent_of(name, step=step))]
        deed, *given = chance.choice([created, created, updated, listed, *others])
        results = [getattr(one, deed)("chat-1", *given) for one in both]
        assert results[0] == results[1], (step, deed)
        counts[name] += deed == "create_message"
        states = [one.read_agent("chat-1", name).state for one in both]
        assert states[0] == states[1] and (deed != "update_agent" or states[0] == {"step": step})
    assert min(counts.values()) > 20


def test_a_message_is_replaced_in_place_for_all_readers(repository: LetopisSessionRepository, shared: History) -> None:
    """As a guardrail does; erasing the message erases what was kept with the replacement, too."""
    repository.create_message("chat-1", "bot", said("my number is 4711", 0))
    repository.create_message("chat-1", "bot", said("and?", 1))
    redacted: Any = {"role": "user", "content": [{"text": "[redacted]"}], "tracking_id": "t-1"}
    replaced = SessionMessage(said("my number is 4711", 0).message, 0, redact_message=redacted)
    repository.update_message("chat-1", "bot", replaced)
    assert repository.list_messages("chat-1", "bot")[0] == replaced
    first, second = known(shared, lambda history: history.messages("chat-1"))
    assert [first.text, second.text] == ["[redacted]", "and?"]
    known(shared, lambda history: history.chat("chat-1").redact(first.id))
    assert texts(repository.list_messages("chat-1", "bot")) == ["and?"]
    with pytest.raises(SessionException, match="does not exist"):
        repository.update_message("chat-1", "bot", said("?", 7))


def test_what_something_else_wrote_or_edited(repository: LetopisSessionRepository, shared: History) -> None:
    call: Any = {"role": "assistant", "content": [{"text": "Let me lok"}, CALL]}
    repository.create_message("chat-1", "bot", SessionMessage.from_message(call, 0))
    (wrong,) = known(shared, lambda history: history.messages("chat-1"))
    fixed = (Text("Let me look"), *wrong.message.content[1:])
    known(shared, lambda history: history.chat("chat-1").edit(wrong.id, fixed))
    known(shared, lambda history: history.append("chat-1", Message.user("from elsewhere")))
    (found,) = repository.list_messages("chat-1", "bot")
    assert found.message == {"role": "assistant", "content": [{"text": "Let me look"}, CALL]}


def test_two_processes_that_count_alike_lose_nothing(repository: LetopisSessionRepository) -> None:
    """The framework's own files hold one message of a number, the last."""
    for text in ("from the first", "from the second"):
        repository.create_message("chat-1", "bot", said(text, 0))
    assert texts(repository.list_messages("chat-1", "bot")) == ["from the first", "from the second"]


def test_long_sessions_are_read_from_their_end(repository: LetopisSessionRepository) -> None:
    for number in range(220):
        repository.create_message("chat-1", "bot", said(f"message {number}", number))
    assert texts(repository.list_messages("chat-1", "bot", offset=215)) == [f"message {n}" for n in range(215, 220)]
    assert len(repository.list_messages("chat-1", "bot")) == 220
    assert repository.read_message("chat-1", "bot", 3) is not None


def test_what_is_there_and_what_is_not(repository: LetopisSessionRepository) -> None:
    assert repository.read_session("chat-2") is repository.read_agent("chat-1", "another") is None
    refused: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("already exists", repository.create_session, (Session("chat-1", SessionType.AGENT),)),
        ("already exists", repository.create_agent, ("chat-1", agent_of("bot"))),
        ("does not exist", repository.update_agent, ("chat-1", agent_of("another"))),
        ("does not exist", repository.delete_session, ("chat-2",)),
        ("JSON", repository.create_message, ("chat-1", "bot", said(object(), 0))),  # type: ignore[arg-type]
    ]
    for why, deed, given in refused:
        with pytest.raises(SessionException, match=why):
            deed(*given)


def test_a_session_is_erased_and_its_id_used_again(repository: LetopisSessionRepository, shared: History) -> None:
    repository.create_message("chat-1", "bot", said("hi", 0))
    repository.delete_session("chat-1")
    assert repository.read_session("chat-1") is repository.read_agent("chat-1", "bot") is None
    assert repository.list_messages("chat-1", "bot") == []
    with pytest.raises(SessionException):
        repository.update_agent("chat-1", agent_of("bot"))
    repository.create_session(Session("chat-1", SessionType.AGENT))
    repository.create_message("chat-1", "bot", said("hi", 0))
    assert texts(repository.list_messages("chat-1", "bot")) == ["hi"]
    erased, said_anew = known(shared, lambda history: history.messages("chat-1", every=True))
    assert (erased.text, said_anew.text) == ("", "hi")


def test_a_multi_agent_is_kept(repository: LetopisSessionRepository) -> None:
    def graph() -> Any:
        builder = GraphBuilder()
        builder.add_node(Agent(model=FakeModel(nothing), callback_handler=None, agent_id="one"), "one")
        builder.set_graph_id("flow")
        builder.set_max_node_executions(3)
        builder.set_session_manager(RepositorySessionManager("chat-1", session_repository=repository))
        return builder.build()

    graph()("hi")
    state = repository.read_multi_agent("chat-1", "flow")
    assert state is not None and state["completed_nodes"] == ["one"]
    assert {node.node_id for node in graph().state.completed_nodes} == set()
    assert repository.read_multi_agent("chat-1", "another") is None
    with pytest.raises(SessionException, match="already exists"):
        repository.create_multi_agent("chat-1", graph())
    builder = graph()
    builder.id = "another"
    with pytest.raises(SessionException, match="does not exist"):
        repository.update_multi_agent("chat-1", builder)


def test_a_session_that_is_said_to_be_new_begins_without_the_store(away: History) -> None:
    begun = agent_on(LetopisSessionRepository(away, new=True))
    begun("What is tea?")
    assert len(begun.messages) == 2
    assert agent_on(LetopisSessionRepository(away, new=True)).messages == begun.messages


def test_without_the_store(away: History) -> None:
    """A session that the outbox knows goes on; of another one it is not said that it is new."""
    repository = LetopisSessionRepository(away)
    for read, given in ((repository.read_session, ("chat-1",)), (repository.list_messages, ("chat-1", "bot"))):
        with pytest.raises(SessionException, match="unreachable"):
            read(*given)

    async def put() -> None:
        records = away.records(conversation="chat-1")
        await records.put(("strands",), "session", Session("chat-1", SessionType.AGENT).to_dict())
        await records.put(("strands", "agents"), "bot", agent_of("bot").to_dict())

    asyncio.run(put())
    repository.create_message("chat-1", "bot", said("hi", 0))
    agent = agent_on(repository)
    agent.state.set("step", 1)
    assert str(agent("and?")).strip() == "answer to and?"
    assert texts(repository.list_messages("chat-1", "bot")) == ["hi", "and?", "answer to and?"]


async def test_in_the_loop_of_the_history_it_says_what_to_do(history: History) -> None:
    repository = LetopisSessionRepository(history)
    with pytest.raises(InHomeLoop, match="own_thread"):
        repository.read_session("chat-1")
    assert await asyncio.to_thread(repository.read_session, "chat-1") is None


# Storage.


async def same(storage: Any, theirs: Any, deed: str, *given: Any) -> Any:
    results: list[Any] = []
    for one in (storage, theirs):
        try:
            results.append(await getattr(one, deed)(*given))
        except StorageError:
            results.append(StorageError)
    assert results[0] == results[1], (deed, given)
    return results[0]


async def test_the_same_deeds_as_in_memory(bot: History) -> None:
    """Random ones, on each kind of store, with the framework's own storage beside."""
    ours, theirs, chance = LetopisStorage(bot), InMemoryStorage(), random.Random(2)
    words = ["session", "chat", "chat-1", "scopes", "ü", "a%b", "..", "", "snapshot_latest.json", "x" * 40]
    for _ in range(250):
        key = "/".join(chance.choices(words, k=chance.randint(1, 5)))
        deed = chance.choice(["write", "write", "read", "delete", "list", "list"])
        given = [chance.randbytes(5)] if deed == "write" else []
        await same(ours, theirs, deed, key[: chance.randint(0, len(key))] if deed == "list" else key, *given)
    for prefix in ("", "session", "session/", "session/ch", "session/chat-1/", "/session//chat/", "x"):
        await same(ours, theirs, "list", prefix)
    assert len(await ours.list("")) > 20


@pytest.mark.parametrize("key", ["a", "a/b", "a/b/c", "a/b/c/d/e", "ключ/b"])
def test_keys_have_one_place(key: str) -> None:
    assert key_at(place_of(key)) == key == key_at(place_of(f"/{key.replace('/', '//')}/"))
    namespace, _ = place_of(key)
    for length in range(len(key) + 1):
        below, beginning = range_of(key[:length])
        assert key.startswith(beginning) and namespace[: len(below)] == below


@pytest.mark.parametrize("key", ["", "/", "a\\b", "a/../b"])
async def test_what_no_key_can_be(history: History, key: str) -> None:
    with pytest.raises(StorageError, match="key"):
        await LetopisStorage(history).write(key, b"")


def test_the_records_of_a_session_are_in_one_lane() -> None:
    """So they are delivered in order."""
    keys = ["session/chat-1/scopes/agent/bot/snapshots/snapshot_latest.json", "session/chat-1/scopes/x"]
    assert {place_of(key)[0] for key in keys} == {("strands", "session", "chat-1")}


async def test_it_is_searched(history: History) -> None:
    storage: Any = LetopisStorage(history)
    if not hasattr(storage, "search"):
        pytest.skip("this release has none")
    await storage.write("notes/tea.md", b"green, black, white")
    await storage.write("notes/coffee.md", b"arabica")
    assert [one.key for one in await storage.search("black tea")] == ["notes/tea.md"]


async def test_storage_without_the_store(alone: History) -> None:
    storage = LetopisStorage(alone)
    for call in (storage.read("session/a"), storage.list("session/")):
        with pytest.raises(StorageError, match="unreachable"):
            await call
    await storage.write("session/a", b"1")
    assert await storage.read("session/a") == b"1"


async def test_several_storages_in_one_history(history: History) -> None:
    await LetopisStorage(history).write("a", b"1")
    assert await LetopisStorage(history, space="another").read("a") is None
    assert await history.records(space="strands").put(("strands",), "b", b"", expected=ABSENT)
    assert await LetopisStorage(history).list("") == ["a", "b"]
