"""A window for a model holds what fits, whole: no call without its result, no result without its call."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from letopis import File, History, Text, ToolCall, ToolResult
from letopis.outbox.history.context import MIN_PAGE_SIZE, ReadPage, ending_with, read_context
from letopis.store import ConversationStore, InvalidInput, Message, Page, RecordedMessage, StoreUnavailable
from letopis.store.rules.context_window import Context, WindowBudget, by_recorded_tokens, window
from tests.support.paths import ROOT

WHEN = datetime(2026, 1, 31, 12, tzinfo=UTC)
ORIGIN = UUID(int=1)


def said(role: str, content: Any, number: int) -> Message:
    return Message(role=role, content=content, id=f"m{number}")


def recorded(message: Message, version: int, **fields: Any) -> RecordedMessage:
    ids = {"conversation_id": "c", "event_id": UUID(int=version), "origin_id": ORIGIN, "sequence": version}
    return RecordedMessage(message=message, occurred_at=WHEN, version=version, **ids, **fields)


def log(*items: tuple[str, Any]) -> list[Message]:
    return [said(role, content, number) for number, (role, content) in enumerate(items)]


def stored(*items: tuple[str, Any]) -> list[RecordedMessage]:
    return [recorded(message, version) for version, message in enumerate(log(*items), start=1)]


def told(found: Context) -> list[str]:
    """The ids of what is in a window; a made-up result as the call that it is for."""
    return [
        f"?{part.call_id}" if one.id in found.made_up and isinstance(part := one.content[0], ToolResult) else one.id
        for one in found.messages
    ]


def words(message: Message) -> int:
    return len(message.text.split())


def calls(*ids: str) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(one, "look") for one in ids)


CHAT = log(
    ("system", "be kind"), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2"), ("user", "three")
)


class TestLimits:
    def test_without_a_limit_all_of_it_is_in(self) -> None:
        found = window(CHAT)
        assert found == Context(messages=tuple(CHAT))
        assert found.complete

    @pytest.mark.parametrize(
        ("limits", "expected"),
        [
            *(({"last": 6}, "m0 m1 m2 m3 m4 m5"), ({"tokens": 7, "count": words}, "m0 m1 m2 m3 m4 m5")),
            *(({"turns": turns}, "m0 m1 m2 m3 m4 m5") for turns in (3, 9)),
            *((limits, "m0 m3 m4 m5") for limits in ({"last": 5}, {"last": 4}, {"turns": 2}, {"turns": 3, "last": 4})),
            *(({"tokens": tokens, "count": words}, "m0 m3 m4 m5") for tokens in (6, 5)),
            *((limits, "m0 m5") for limits in ({"last": 3}, {"last": 2}, {"turns": 1}, {"tokens": 4, "count": words})),
            ({"turns": 1, "last": 6, "tokens": 99, "count": words}, "m0 m5"),
            *(({"last": 1}, "m0"), ({"tokens": 2, "count": words}, "m0")),
            ({"last": 3, "keep_system": False}, "m3 m4 m5"),
            ({"last": 5, "keep_system": False}, "m1 m2 m3 m4 m5"),
            ({"last": 6, "keep_system": False}, "m0 m1 m2 m3 m4 m5"),
        ],
    )
    def test_the_newest_turns_that_fit_are_in(self, limits: dict[str, Any], expected: str) -> None:
        found = window(CHAT, **limits)
        assert " ".join(told(found)) == expected
        assert found.complete == (len(found.messages) == len(CHAT))
        assert not found.begins_inside
        assert found.tokens == (sum(map(words, found.messages)) if "count" in limits else None)

    @pytest.mark.parametrize(
        ("roles", "limits", "expected", "begins_inside"),
        [
            ("user assistant tool assistant", {"last": 2}, "m3", True),
            ("user assistant tool assistant", {"last": 3}, "m1 m2 m3", True),
            ("assistant user assistant", {"turns": 1}, "m1 m2", False),
        ],
    )
    def test_a_window_inside_a_turn_begins_with_no_tool_message(
        self, roles: str, limits: dict[str, int], expected: str, begins_inside: bool
    ) -> None:
        found = window(log(*((role, "x") for role in roles.split())), **limits)
        assert (told(found), found.begins_inside) == (expected.split(), begins_inside)

    @pytest.mark.parametrize(
        ("limits", "field"),
        [
            *(({"last": 0}, "last"), ({"last": "5"}, "last"), ({"turns": -1}, "turns")),
            *(({"tokens": True, "count": words}, "tokens"), ({"tokens": 1, "count": words}, "tokens")),
            *(({"tokens": 5}, "count"), ({"count": 5}, "count")),
            *(({"tokens": 9, "count": lambda _: -1}, "count"), ({"tokens": 9, "count": lambda _: 1.5}, "count")),
        ],
    )
    def test_a_limit_that_cannot_be_held_is_refused(self, limits: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidInput, match=f"^{field}: "):
            window(CHAT, **limits)

    def test_system_messages_beyond_the_limit_are_refused_and_named(self) -> None:
        messages = log(("system", "a"), ("system", "b"), ("user", "hi"))
        with pytest.raises(InvalidInput, match="system messages at the beginning alone are 2"):
            window(messages, last=1)
        assert told(window(messages, last=1, keep_system=False)) == ["m2"]

    def test_recorded_tokens_count_only_where_the_caller_says_so(self) -> None:
        messages = [Message.user("a b c", tokens=1, id="1"), Message.assistant("d e", id="2")]
        assert window(messages, count=words).tokens == 5
        assert window(messages, count=by_recorded_tokens(100)).tokens == 101
        assert window(messages, count=by_recorded_tokens(words)).tokens == 3


class TestCalls:
    def test_a_message_with_several_results_becomes_one_a_result(self) -> None:
        picture = File("s3://b/k", name="k.png")
        both = Message.tool((ToolResult("b", 2), picture, ToolResult("a", 1)), id="t", tokens=9, usage={"x": 1})
        messages = [Message.user("u", id="u"), Message.assistant(calls("a", "b"), id="c"), both]
        found = window(messages, count=by_recorded_tokens(1))
        assert [one.content for one in found.messages[2:]] == [(ToolResult("a", 1),), (ToolResult("b", 2), picture)]
        assert [one.id for one in found.messages] == ["u", "c", "t", "t"]
        assert found.tokens == 11

    def test_results_in_a_user_message_go_to_their_call_and_its_words_stay(self) -> None:
        messages = log(
            ("user", "u"),
            ("assistant", calls("a", "b")),
            ("user", (ToolResult("a", 1), ToolResult("b", 2))),
            ("assistant", calls("c")),
            ("user", (ToolResult("c", 3), Text("and hurry"))),
        )
        found = window(messages).messages

        assert " ".join(f"{one.id}:{one.role}" for one in found) == (
            "m0:user m1:assistant m2:tool m2:tool m3:assistant m4:tool m4:user"
        )
        assert found[-1].content == (Text("and hurry"),)
        assert [one.id for one in window(messages, turns=1).messages] == ["m4"]

    def test_a_call_without_a_result_is_marked_as_interrupted(self) -> None:
        asked = ("user", "u"), ("assistant", calls("a", "b"))
        messages = log(*asked, ("tool", (ToolResult("b", 2),)), ("user", "hello?"))
        found = window(messages)
        made = found.messages[2]
        assert told(found) == ["m0", "m1", "?a", "m2", "m3"]
        assert (made.role, made.content) == ("tool", (ToolResult("a", status="interrupted"),))
        assert found == window(messages), "made up again, it is the same"
        assert told(window(messages, last=4)) == ["m3"], "made-up ones count too"

    def test_a_result_without_its_call_is_left_out_and_told(self) -> None:
        messages = log(("tool", (ToolResult("x", 1),)), ("user", (Text("hi"), ToolResult("y", 2))), ("assistant", "ho"))
        found = window(messages)
        assert [(one.id, one.content) for one in found.messages] == [("m1", (Text("hi"),)), ("m2", "ho")]
        assert [(one.message_id, one.result.call_id) for one in found.orphans] == [("m0", "x"), ("m1", "y")]

    @pytest.mark.parametrize(
        ("words", "expected", "duplicates"),
        [
            pytest.param("u >a <a <a said", "m0 m1 m2 m4", "m3", id="the first of several results wins"),
            pytest.param("<a <b u >ab <b", "m2 m3 m0 m4", "m1", id="a result may be recorded before its call"),
            pytest.param("u >a <a u >a u >a <a", "m0 m1 m2 m3 m4 ?a m5 m6 m7", "", id="the nearest call of an id"),
        ],
    )
    def test_each_call_takes_one_result(self, words: str, expected: str, duplicates: str) -> None:
        """``>ab`` calls a and b, ``<a`` is a result of a, ``u`` is said by the user."""
        items: list[tuple[str, Any]] = []
        for number, word in enumerate(words.split()):
            match word[0]:
                case ">":
                    items.append(("assistant", calls(*word[1:])))
                case "<":
                    items.append(("tool", (ToolResult(word[1:], f"m{number}"),)))
                case _:
                    items.append(("user" if word == "u" else "assistant", word))
        found = window(log(*items))

        assert told(found) == expected.split()
        assert [one.message_id for one in found.duplicates] == duplicates.split()
        assert [one.result.output for one in found.duplicates] == duplicates.split()
        assert found.complete

    def test_a_result_in_the_message_of_its_call_comes_after_it(self) -> None:
        messages = log(("user", "u"), ("assistant", (ToolCall("a", "search"), ToolResult("a", 1), Text("found"))))
        found = window(messages)
        assert [one.content for one in found.messages[1:]] == [
            (ToolCall("a", "search"), Text("found")),
            (ToolResult("a", 1),),
        ]


class TestPath:
    def test_only_the_active_path_is_seen_and_nothing_redacted(self) -> None:
        messages = [
            recorded(said("user", "u", 1), 1),
            recorded(said("assistant", "taken back", 2), 2, on_path=False),
            recorded(said("assistant", "too late", 3), 3, on_path=False, superseded=True),
            recorded(said("user", "", 4), 4, redacted=True),
            recorded(said("assistant", calls("a"), 5), 5),
            recorded(said("tool", "", 6), 6, redacted=True),
        ]

        found = window(messages)

        assert told(found) == ["m1", "m5", "?a"]


# Any log: calls and results of a few ids, so that they are reused, doubled, early, late and missing.
IDS = st.sampled_from("abcd")
RESULTS = st.builds(ToolResult, IDS, st.integers(0, 99))
PARTS = st.builds(Text, st.sampled_from(["x", "y z"])) | st.builds(ToolCall, IDS, st.just("look")) | RESULTS
ITEMS = st.one_of(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from(["p", "q r", ""])),
    st.tuples(st.just("assistant"), st.lists(PARTS, min_size=1, max_size=4).map(tuple)),
    st.tuples(st.just("tool"), st.lists(RESULTS, min_size=1, max_size=3).map(tuple)),
    st.tuples(st.just("user"), st.lists(PARTS, min_size=1, max_size=3).map(tuple)),
)
LOGS = st.lists(ITEMS, max_size=25).map(lambda items: log(*items))
LIMITS = st.fixed_dictionaries(
    {"keep_system": st.booleans()},
    optional={"last": st.integers(1, 20), "turns": st.integers(1, 6), "tokens": st.integers(1, 40)},
)


def length(message: Message) -> int:
    return 1 + words(message)


def calls_in(message: Message) -> list[str]:
    parts = message.content if message.role == "assistant" else ()
    return [part.call_id for part in parts if isinstance(part, ToolCall)]


def results_in(message: Message) -> list[str]:
    return [part.call_id for part in message.content if isinstance(part, ToolResult)]


def anchors(messages: Sequence[Message]) -> list[tuple[str, Any]]:
    """The content apart from results: the id, and the parts that are not results."""
    rest = [(one, [part for part in one.content or () if not isinstance(part, ToolResult)]) for one in messages]
    return [(one.id, parts) for one, parts in rest if parts or not one.content]


def bounded(messages: Sequence[Message], limits: dict[str, Any]) -> Context:
    """The window of an example in which the system messages are within the limits."""
    try:
        return window(messages, count=length, **limits)
    except InvalidInput as refused:
        assert "system messages" in refused.reason  # noqa: PT017
        reject()


class TestProperties:
    """For any log and any limits."""

    @settings(max_examples=150)
    @given(LOGS, LIMITS)
    def test_calls_and_results_are_never_apart(self, messages: list[Message], limits: dict[str, Any]) -> None:
        found = bounded(messages, limits)
        said = iter(found.messages)
        for one in said:
            assert not results_in(one), "a result that follows no call"
            for call_id in calls_in(one):
                result = next(said)
                assert (result.role, results_in(result)) == ("tool", [call_id])

        given_results = Counter((m.id, r) for m in messages for r in results_in(m))
        real = Counter((m.id, r) for m in found.messages if m.id not in found.made_up for r in results_in(m))
        strays = Counter((one.message_id, one.result.call_id) for one in (*found.orphans, *found.duplicates))
        assert real + strays <= given_results
        if found.complete:
            assert real + strays == given_results, "a result got lost"

    @settings(max_examples=150)
    @given(LOGS, LIMITS)
    def test_it_is_the_newest_part_and_within_the_limits(self, messages: list[Message], limits: dict[str, Any]) -> None:
        found = bounded(messages, limits)
        leading = takewhile(lambda one: one.role == "system", window(messages).messages)
        system = list(leading) if limits["keep_system"] else []

        rest = list(found.messages[len(system) :])
        assert list(found.messages[: len(system)]) == system
        whole, part = anchors(messages), anchors(rest)
        assert part == (whole[-len(part) :] if part else [])
        assert found.tokens == sum(map(length, found.messages))
        assert len(found.messages) <= limits.get("last", 10**9)
        assert found.tokens <= limits.get("tokens", 10**9)
        asked = [one.role == "user" for one in rest]
        begun = [this and not before for before, this in pairwise([False, *asked])]
        assert sum(begun) <= limits.get("turns", 10**9)
        if rest and not found.complete:
            assert rest[0].role == "user" or found.begins_inside
            assert rest[0].role != "tool"
        if found.begins_inside:
            assert not any(begun[1:])

    @settings(max_examples=150)
    @given(LOGS, LIMITS)
    def test_a_window_of_a_window_is_the_same(self, messages: list[Message], limits: dict[str, Any]) -> None:
        found = bounded(messages, limits)
        again = window(found.messages, count=length, **limits)
        assert window(found.messages).messages == again.messages == found.messages
        assert (again.orphans, again.duplicates, again.made_up) == ((), (), ())

    @settings(max_examples=60)
    @given(st.data(), LIMITS)
    async def test_reading_backwards_finds_the_same(self, data: st.DataObject, limits: dict[str, Any]) -> None:
        """Page by page as from the whole, where results are not recorded far before their calls."""
        items: list[tuple[str, Any]] = data.draw(st.lists(st.tuples(st.just("system"), st.just("s")), max_size=12))
        for number in range(data.draw(st.integers(0, 130))):
            call = f"c{number}"
            items += [("user", f"q {number}"), ("assistant", calls(call)), ("tool", (ToolResult(call),))]
        drop = data.draw(st.sets(st.integers(12, len(items) + 12), max_size=20))
        items = [one for place, one in enumerate(items) if place not in drop]
        messages = stored(*items)
        limits = limits | {
            name: limits[name] * data.draw(st.sampled_from([1, 10]))
            for name in ("last", "tokens", "turns")
            if name in limits
        }
        end = data.draw(st.none() | st.integers(1, len(messages))) if messages else None
        cut = list if end is None else ending_with(messages[end - 1].id)
        try:
            expected = window(messages[:end], count=length, **limits)
        except InvalidInput as refused:
            with pytest.raises(InvalidInput) as same:
                await read_context(pages(messages), WindowBudget(count=length, **limits), cut)
            assert same.value.field == refused.field  # noqa: PT017
            return

        found = await read_context(pages(messages), WindowBudget(count=length, **limits), cut)

        assert replace(found, orphans=(), duplicates=()) == replace(expected, orphans=(), duplicates=())
        if found.complete:
            assert found == expected


def pages(messages: Sequence[RecordedMessage], *, asked: list[int] | None = None, complete: bool = True) -> ReadPage:
    """Read pages of a list as a history would."""

    async def read(
        *, last: int | None = None, first: int | None = None, before: str | None = None, after: str | None = None
    ) -> Page[RecordedMessage]:
        low, high = int(after or -1), int(before or 10**9)
        inside = [one for one in messages if one.version is not None and low < one.version < high]
        found = inside[-last:] if last is not None else inside[:first]
        if asked is not None:
            asked.append(len(found))
        edge = None if len(found) == len(inside) else str(found[0 if last is not None else -1].version)
        return Page(tuple(found), next=edge, complete=complete)

    return read


class TestReading:
    """Pages, from the newest back."""

    LONG = stored(
        ("system", "be kind"), *(one for n in range(500) for one in (("user", f"q{n}"), ("assistant", f"a{n}")))
    )

    @pytest.mark.parametrize("limits", [{"last": 20}, {"turns": 10}, {"tokens": 60, "count": words}])
    async def test_a_small_window_of_a_long_history_reads_little(self, limits: dict[str, Any]) -> None:
        asked: list[int] = []
        found = await read_context(pages(self.LONG, asked=asked), WindowBudget(**limits))
        assert found == window(self.LONG, **limits)
        assert found.messages[0].text == "be kind"
        assert sum(asked) <= 2 * MIN_PAGE_SIZE

    async def test_a_result_a_little_before_its_call_is_found_beyond_the_window(self) -> None:
        early = ("tool", (ToolResult("a", "early"),))
        messages = stored(*[("user", "q")] * 200, early, *[("user", "r")] * 70, ("assistant", calls("a")))
        found = await read_context(pages(messages), WindowBudget(last=5))
        assert (found.made_up, found.messages[-1].content) == ((), (ToolResult("a", "early"),))

    async def test_results_of_a_call_beyond_the_page_are_no_results_of_a_later_one(self) -> None:
        """For a model that reuses its ids."""
        old = ("user", "u"), ("assistant", calls("call_0")), ("tool", (ToolResult("call_0", "old"),))
        between = [("assistant", "a")] * (MIN_PAGE_SIZE - 3)
        messages = stored(*old, *between, ("user", "v"), ("assistant", calls("call_0")))
        assert messages[-MIN_PAGE_SIZE].role == "tool"
        found = await read_context(pages(messages), WindowBudget(turns=1))
        assert told(found) == [messages[-2].id, messages[-1].id, "?call_0"]

    async def test_developer_messages_at_the_beginning_are_instructions_too(self) -> None:
        long = [recorded(Message.developer("be brief"), 0), *self.LONG]
        found = await read_context(pages(long), WindowBudget(last=4))
        assert [one.text for one in found.messages] == ["be brief", "be kind", "q499", "a499"]

    async def test_while_the_store_is_away_it_says_so_and_keeps_the_system_messages_that_are_known(self) -> None:
        found = await read_context(pages(self.LONG[-7:], complete=False), WindowBudget(last=50))
        known = await read_context(pages(self.LONG[:5], complete=False), WindowBudget(last=3))
        assert [one.text for one in found.messages] == ["q497", "a497", "q498", "a498", "q499", "a499"]
        assert (found.reached, found.complete) == (False, False)
        assert [one.text for one in known.messages] == ["be kind", "q1", "a1"]


async def test_a_context_ends_with_the_message_that_it_is_asked_for(store_url: str, tmp_path: Path) -> None:
    """Whether it is pending, saved or inherited, and however much came after it."""
    async with (
        ConversationStore.open(store_url, migrate=True) as store,
        History(tmp_path / "bot.outbox.db", store=store) as history,
    ):
        await history.append("c", Message.system("be kind"), owner="42")
        for number in range(100):
            await history.append("c", Message.user(f"q{number}", id=f"q{number}"), Message.assistant(f"a{number}"))
        assert await history.drained(timeout=30)
        await history.append("c", Message.user("late", id="late"), Message.user("later"))
        await history.chat("c").fork("fork")
        await history.append("fork", Message.user("in the fork"))

        for chat in ("c", "fork"):
            saved = await history.context(chat, last=4, until="q3")
            pending = await history.context(chat, last=3, until="late")
            assert [one.text for one in saved.messages] == ["be kind", "q2", "a2", "q3"]
            assert [one.text for one in pending.messages] == ["be kind", "late"]

        await history.chat("c").redact("q7")
        await history.chat("c").rewind(to="q9")
        for gone in ("q7", "q11", "never"):
            with pytest.raises(InvalidInput, match="until: must be the id of a message on the path"):
                await history.context("c", last=4, until=gone)
        with pytest.raises(InvalidInput, match="until"):
            await history.context("c", until="")


async def test_without_the_store_a_message_that_is_not_in_the_outbox_is_not_known(alone: History) -> None:
    await alone.append("c", Message.user("q", id="q"), Message.user("r"), owner="42")
    assert [one.text for one in (await alone.context("c", until="q")).messages] == ["q"]
    with pytest.raises(StoreUnavailable, match="ends with"):
        await alone.context("c", until="earlier")


async def test_the_how_to_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "context-windows.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(block, names)  # noqa: S102
    async with History(tmp_path / "bot.outbox.db", relay=False) as history:
        await history.append("c", Message.user("weather?"), Message.assistant((Text("hm"), *calls("w", "v"))))
        await history.append("c", Message.tool((ToolResult("v", {"degrees": -5}),)))

        assert (await names["prompt"](history, "c"))[0] == {"role": "user", "content": "weather?"}
        context = await names["fitting"](history, "c", str.split)
        requests = await names["request"](history, "c")
        await history.append("c", Message.user("and now?", id="q2"), Message.user("later"))
        assert (await names["prompt_for"](history, "c", "q2"))[-1] == "and now?"

    assert context.tokens > 16
    assert requests[1]["content"] == "hm"
    assert [one["id"] for one in requests[1]["tool_calls"]] == ["w", "v"]
    assert [(one["role"], one["tool_call_id"], one["content"]) for one in requests[2:]] == [
        ("tool", "w", "interrupted"),
        ("tool", "v", '{"degrees":-5}'),
    ]
