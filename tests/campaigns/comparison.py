"""Compare what was imported with what is exported: per conversation, in order, none lost, doubled or changed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

SHOWN: Final = 10

Line = tuple[str | None, str]  # id, canonical text of the whole line
Conversations = Mapping[str, Sequence[Line]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the two sides differ; all zero when they are equal."""

    conversations: int
    messages: int
    lost: int
    doubled: int
    foreign: int
    changed: int
    reordered: int
    digest: str
    problems: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Return True if every conversation is the same on both sides."""
        return not (self.lost or self.doubled or self.foreign or self.changed or self.reordered or self.problems)

    def __str__(self) -> str:
        words = (
            f"{self.lost} lost, {self.doubled} doubled, {self.foreign} foreign, {self.changed} changed, "
            f"{self.reordered} conversations out of order"
        )
        return "\n  ".join((words, *self.problems))


def compare(imported: Conversations, exported: Conversations) -> Comparison:
    """Return how ``exported`` differs from ``imported``.

    *lost*: messages that did not come back; *doubled*: came back more often than they went in; *foreign*: never went
    in; *changed*: same id, other content; *reordered*: conversations whose common messages stand in another order.
    """
    totals: Counter[str] = Counter()
    problems: list[str] = []
    for name in sorted(imported.keys() | exported.keys()):
        given, found = imported.get(name, ()), exported.get(name, ())
        if given == found:
            continue
        differences = _differences(given, found)
        totals.update(differences)
        if len(problems) < SHOWN:
            told = ", ".join(f"{count} {what}" for what, count in differences.items() if count)
            problems.append(f"{name!r}: {len(given)} in, {len(found)} out: {told}")
    return Comparison(
        conversations=len(exported),
        messages=sum(map(len, exported.values())),
        lost=totals["lost"],
        doubled=totals["doubled"],
        foreign=totals["foreign"],
        changed=totals["changed"],
        reordered=totals["reordered"],
        digest=digest(exported),
        problems=tuple(problems),
    )


def _differences(given: Sequence[Line], found: Sequence[Line]) -> dict[str, int]:
    before, after = [_key(line) for line in given], [_key(line) for line in found]
    went_in, came_out = Counter(before), Counter(after)
    content = dict(zip(before, (text for _, text in given), strict=True))
    return {
        "lost": (went_in - came_out).total(),
        "doubled": sum(count - went_in[key] for key, count in came_out.items() if 0 < went_in[key] < count),
        "foreign": sum(count for key, count in came_out.items() if key not in went_in),
        "changed": sum(_key(line) in content and content[_key(line)] != line[1] for line in found),
        "reordered": int(
            [key for key in dict.fromkeys(before) if key in came_out]
            != [key for key in dict.fromkeys(after) if key in went_in]
        ),
    }


def _key(line: Line) -> str:
    return line[1] if line[0] is None else f"id {line[0]}"


def digest(conversations: Conversations) -> str:
    """Return a SHA-256 over all conversations, each in its own order."""
    total = hashlib.sha256()
    for name in sorted(conversations):
        for _, text in conversations[name]:
            total.update(f"{name}\n{text}\n".encode())
    return total.hexdigest()


def read(path: Path) -> Conversations:
    """Read a JSONL file into conversations; the order between conversations is no promise and is left aside."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return gather(json.loads(line) for line in file)


def gather(lines: Iterable[Mapping[str, Any]]) -> Conversations:
    conversations: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        conversations[line["conversation_id"]].append((line.get("id"), canonical(line)))
    return conversations


def canonical(line: Mapping[str, Any]) -> str:
    """Return one text for all ways to write the same line: keys sorted, the moment in UTC, nothing empty."""
    return json.dumps(dict(_normal(line)), sort_keys=True, ensure_ascii=False)


def _normal(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in line.items():
        if key == "occurred_at":
            yield key, datetime.fromisoformat(value).astimezone(UTC).isoformat(timespec="microseconds")
        elif value not in (None, {}):
            yield key, value
