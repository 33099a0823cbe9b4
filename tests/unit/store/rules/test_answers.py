"""The messages of a log are grouped by the question that they answer."""

from dataclasses import replace

from letopis.store import ConversationRewound, Message, RecordedEvent
from letopis.store.rules.answers import Answers, answers_by_question
from letopis.store.rules.preconditions import SUPERSEDED_KEY
from tests.unit.store.rules.test_fold import recorded

ROLES = {"u": "user", "s": "system", "t": "tool"}


def events(*words: str | ConversationRewound) -> list[RecordedEvent]:
    """Messages named by their role; ``<u1`` goes back to one, and what begins with ``!`` was put aside."""
    log = []
    for number, word in enumerate(words, 1):
        name = word if isinstance(word, str) else ""
        if isinstance(word, ConversationRewound) or name.strip("!").startswith("<"):
            body = word if isinstance(word, ConversationRewound) else ConversationRewound.back_to(name.strip("!<"))
            event = recorded(number, body)
        else:
            plain = name.strip("!")
            event = recorded(number, Message(role=ROLES.get(plain[0], "assistant"), content=plain, id=plain))
        log.append(replace(event, metadata={SUPERSEDED_KEY: {}}) if name.startswith("!") else event)
    return log


def answers(*words: str | ConversationRewound) -> Answers:
    return answers_by_question(events(*words))


def test_an_answer_is_all_that_follows_a_question_but_instructions() -> None:
    assert answers("s0", "a0", "u1", "u2", "a1", "t1", "s1", "a2", "u3") == {
        "u1": [("a1", "t1", "a2")],
        "u2": [("a1", "t1", "a2")],
    }


def test_a_regenerated_answer_is_one_more() -> None:
    assert answers("u1", "a1", "u2", "a2", "<u1", "a3", "u3", "a4") == {
        "u1": [("a1",), ("a3",)],
        "u2": [("a2",)],
        "u3": [("a4",)],
    }


def test_what_was_put_aside_changes_nothing() -> None:
    assert answers("u1", "a1", "!<u1", "!a9", "!u9", "a2") == {"u1": [("a1", "a2")]}


def test_going_back_to_what_is_off_the_path_changes_nothing() -> None:
    assert answers("u1", "a1", "u2", "a2", "<a1", "<a2", "a3") == {"u1": [("a1", "a3")], "u2": [("a2",)]}

    assert answers("u1", "a1", "<u1", "a2", "a3", "<a1", "a4") == {"u1": [("a1",), ("a2", "a3", "a4")]}


def test_the_beginning_of_an_answer_is_none() -> None:
    assert answers("u1", "a1", "a2", "<a1") == {"u1": [("a1", "a2")]}


def test_going_back_beyond_the_log_takes_all() -> None:
    for back in (ConversationRewound(), ConversationRewound(erase=True), ConversationRewound.back_to("inherited")):
        assert answers("u1", "a1", back, "a2", "u2", "a3") == {"u1": [("a1",)], "u2": [("a3",)]}
