"""Read conversations of real people (the package ``chitchat-dataset``, MIT) as lines of JSONL."""

import json
import random
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any


def write(path: Path, *, sample: float = 1.0, seed: int = 0) -> int:
    """Write a share of the conversations to a JSONL file, interleaved by time; return how many messages there are."""
    lines: list[tuple[str, int, int, dict[str, Any]]] = []
    for place, (_, conversation) in enumerate(conversations(sample=sample, seed=seed)):
        for count, line in enumerate(conversation, 1):
            if place % 10 == 3:
                del line["id"]
            lines.append((line["occurred_at"], place, count, line))
    # By time over all conversations, as a bot would have met them; within one, times never step back.
    lines.sort(key=lambda entry: entry[:3])
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for *_, line in lines)
    return len(lines)


def conversations(*, sample: float = 1.0, seed: int = 0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    data = _load()
    names = sorted(data)
    if sample < 1.0:
        names = sorted(random.Random(seed).sample(names, max(1, round(len(names) * sample))))
    for name in names:
        yield name, list(conversation_lines(name, data[name]))


def conversation_lines(name: str, conversation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    number = 0
    first = conversation["messages"][0][0]["sender"]
    for turn, utterances in enumerate(conversation["messages"], 1):
        for utterance in utterances:
            number += 1
            yield {
                "conversation_id": name,
                "role": "user" if utterance["sender"] == first else "assistant",
                "content": utterance["text"],
                "id": f"{number}",
                "owner": first,
                "occurred_at": utterance["timestamp"],
                "metadata": {"sender": utterance["sender"], "turn": turn},
            }


@cache
def _load() -> dict[str, Any]:
    import chitchat_dataset  # of the group pages: not every test of a module that knows it needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its file to the collector
        return dict(chitchat_dataset.Dataset())
