"""Group the messages of a log by the question that they answer, also where the path went back, without I/O."""

from __future__ import annotations

from collections.abc import Iterable

from letopis.store.model.event_types import ConversationRewound, MessageAppended
from letopis.store.model.events import RecordedEvent
from letopis.store.model.messages import INSTRUCTIONS
from letopis.store.rules.preconditions import SUPERSEDED_KEY

Answers = dict[str, list[tuple[str, ...]]]


def answers_by_question(events: Iterable[RecordedEvent]) -> Answers:
    """Return the answers to each user message, each as the ids of its messages, in the order of the log.

    Consecutive user messages have the same answers. Events that were put aside have no part in it.
    """
    answers: Answers = {}
    path: list[tuple[str, str]] = []
    places: dict[str, int] = {}  # of all messages so far; those off the path are not found there
    for event in events:
        if SUPERSEDED_KEY in event.metadata:
            continue
        match event.body():
            case MessageAppended(message=message):
                places[message.id] = len(path)
                path.append((message.id, message.role))
            case ConversationRewound(to_message_id=target):
                at = -1 if target is None else places.get(target, -1)
                if at < 0 or (at < len(path) and path[at][0] == target):
                    _note(answers, path, at + 1)
                    del path[at + 1 :]
    _note(answers, path, 0)
    return answers


def _note(answers: Answers, path: list[tuple[str, str]], cut: int) -> None:
    """Note the answers on a path that go beyond a place."""
    start = cut
    for is_question in (False, True):
        while start and (path[start - 1][1] == "user") is is_question:
            start -= 1
    questions: list[str] = []
    answer: tuple[str, ...] = ()
    for place, (name, role) in enumerate([*path[start:], ("", "user")], start):
        if role != "user":
            answer += (name,) if role not in INSTRUCTIONS else ()
            continue
        if answer and place > cut:
            for question in questions:
                noted = answers.setdefault(question, [])
                if all(earlier[: len(answer)] != answer for earlier in noted):
                    noted.append(answer)
        if answer:
            questions, answer = [], ()
        questions.append(name)
