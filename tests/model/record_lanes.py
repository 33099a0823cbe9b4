"""Model records that several outboxes put into the same scopes of one store."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

from letopis.outbox import History
from letopis.store import ABSENT, RecordConflict

KEYS: Final = ((("a",), "1"), (("a",), "2"), (("a", "b"), "1"), (("c",), "1"))
PREFIXES: Final[tuple[tuple[str, ...], ...]] = ((), ("a",), ("a", "b"))

Key = tuple[int, tuple[tuple[str, ...], str]]  # the number of a scope, and the namespace and key
Held = dict[Key, tuple[Any, UUID]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A put, a deletion (without a revision), or the deletion of all under a prefix."""

    scope: int
    place: tuple[tuple[str, ...], str] | None = None
    prefix: tuple[str, ...] = ()
    value: Any = None
    revision: UUID | None = None
    expected: object = None

    def apply(self, held: Held, *, decide: bool = True) -> None:
        """Change what is held, if the condition holds there."""
        if self.place is None:
            for key in [key for key in held if key[0] == self.scope and key[1][0][: len(self.prefix)] == self.prefix]:
                del held[key]
            return
        key = (self.scope, self.place)
        there = held.get(key)
        if decide and self.expected is not None and self.expected != (ABSENT if there is None else there[1]):
            return
        if self.revision is None:
            held.pop(key, None)
        else:
            held[key] = (self.value, self.revision)


@dataclass
class RecordModel:
    prefix: str
    stored: Held = field(default_factory=dict)
    pending: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))

    def records(self, history: History, scope: int) -> Any:
        owner = f"{self.prefix}-anna"
        return history.records(owner=owner) if scope == 0 else history.records(space=self.prefix)

    def read(self, box: str) -> Held:
        held = dict(self.stored)
        for change in self.pending[box]:
            change.apply(held, decide=False)
        return held

    async def change(self, box: str, history: History, a: int, b: int, c: int, *, down: bool) -> str | None:
        """Change a record through an outbox; return what was done, in words."""
        scope, place = a % 2, KEYS[b % len(KEYS)]
        records = self.records(history, scope)
        if c % 8 == 0:
            prefix = PREFIXES[b % len(PREFIXES)]
            await (records.erase() if not prefix and c % 16 else records.delete_where(prefix))
            self.pending[box].append(Change(scope=scope, prefix=prefix))
            return f"clear {scope} {prefix}"
        if c % 8 == 1:
            await records.delete(*place)
            self.pending[box].append(Change(scope=scope, place=place))
            return f"delete {scope} {place}"
        if c % 8 > 4 or down:
            receipt = await records.put(*place, c)
            self.pending[box].append(Change(scope=scope, place=place, value=c, revision=receipt.revision))
            return f"put {scope} {place} {c}"
        there = self.read(box).get((scope, place))
        expected = (ABSENT if there is None else there[1], ABSENT, uuid4())[c // 8 % 3]
        right = expected == (ABSENT if there is None else there[1])
        try:
            receipt = await records.put(*place, c, expected=expected)
        except RecordConflict:
            if right:
                raise
            return f"put {scope} {place} refused"
        if not right:
            raise AssertionError(f"a record was put over {there}, expected {expected}")
        values = {"value": c, "revision": receipt.revision, "expected": expected}
        self.pending[box].append(Change(scope=scope, place=place, **values))
        return f"put {scope} {place} {c} expected {expected}"

    def deliver(self, box: str) -> None:
        for change in self.pending.pop(box, []):
            change.apply(self.stored)

    async def compare(self, box: str, history: History) -> str | None:
        """Return where what is read is not what is expected."""
        held = self.read(box)
        for scope in (0, 1):
            wanted = {place: value for (there, place), value in held.items() if there == scope}
            page = await self.records(history, scope).list(limit=100)
            listed = {(one.namespace, one.key): (one.value, one.revision) for one in page}
            if not listed.items() <= wanted.items() or (page.next is None and len(listed) < len(wanted)):
                return f"{scope} lists {listed}, not {wanted}"
            for place, one in zip(KEYS, await self.records(history, scope).get_many(KEYS), strict=True):
                if (None if one is None else (one.value, one.revision)) != wanted.get(place):
                    return f"{scope} reads {one} at {place}, not {wanted.get(place)}"
        return None
