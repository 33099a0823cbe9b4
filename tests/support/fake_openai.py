"""A server that streams answers as OpenAI Chat Completions does, on loopback."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event

from tests.support.webhook import Quiet, listening

PIECE_SECONDS = 0.02


def pieces_of(question: str, count: int) -> list[str]:
    """Return what the model says: numbered words, none like another."""
    return [f"{question}.{number} " for number in range(count)]


@dataclass
class FakeOpenAI:
    url: str = ""
    asked: list[str] = field(default_factory=list)
    second_half: Event = field(default_factory=Event)
    """Set, as it is at first, for answers that go on after their first half."""


@contextmanager
def fake_openai(count: int) -> Iterator[FakeOpenAI]:
    fake = FakeOpenAI()
    fake.second_half.set()

    class Answer(Quiet):
        def do_POST(self) -> None:  # noqa: N802 - as the base calls it
            question = json.loads(self.body())["messages"][-1]["content"]
            fake.asked.append(question)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with suppress(ConnectionError):  # the caller may have gone
                for number, piece in enumerate(pieces_of(question, count)):
                    if number == count // 2:
                        fake.second_half.wait()
                    choices = [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]
                    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "fake"}
                    self.wfile.write(f"data: {json.dumps({**chunk, 'choices': choices})}\n\n".encode())
                    time.sleep(PIECE_SECONDS)
                self.wfile.write(b"data: [DONE]\n\n")

    with listening(Answer) as address:
        fake.url = f"http://{address}/v1"
        yield fake
        fake.second_half.set()
