"""Values by content: what is stored once, what a checkpoint names, and that it comes back as it was."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("langgraph.checkpoint.base", reason="needs langgraph: pip install --group adapters")

from letopis.adapters.langgraph.splitting import INLINE, LIST, WHOLE, Pieces, Reference, Splitter, keys_of, pack, unpack


class Pickled:
    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "pickle", pickle.dumps(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(data[1])  # noqa: S301


SERDE = Pickled()


class Shelf:
    """What was stored, as the records of a thread would hold it."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.named: set[str] = set()
        self.stored = 0

    def put(self, value: Any) -> tuple[Reference, bytes]:
        splitter = Splitter(SERDE, self.named)
        reference, inline = splitter.add(value)
        self.stored += sum(map(len, splitter.bodies.values()))
        self.held |= splitter.bodies
        self.named = set(keys_of(reference))
        return reference, inline

    def pieces(self, reference: Reference) -> Pieces:
        """What is needed of it for a value."""
        pieces = Pieces()
        while missing := pieces.missing(list(keys_of(reference))):
            for key in missing:
                pieces.add(key, self.held[key])
        return pieces

    def get(self, reference: Reference, inline: bytes) -> Any:
        return self.pieces(reference).value(reference, inline, SERDE)


def message(number: int, size: int = 250) -> dict[str, Any]:
    return {"role": "user", "content": f"{number}: " + "word " * (size // 5)}


def test_a_growing_list_costs_what_is_new() -> None:
    """666 messages of 250 bytes in 666 checkpoints: whole lists would be 65 MB."""
    shelf, said, references = Shelf(), list[dict[str, Any]](), []
    for number in range(666):
        said.append(message(number))
        references.append(shelf.put(said))
    assert shelf.stored < 4 * 666 * 300
    assert max(len(list(keys_of(reference))) for reference, _ in references) < 200
    assert shelf.get(*references[-1]) == said
    assert shelf.get(*references[400]) == said[:401]


def test_values_that_need_no_record_stand_in_the_checkpoint() -> None:
    values = [None, "short", "long " * 100, [0.5] * 1536, [message(1), message(2)]]
    assert [Shelf().put(value)[0][0] for value in values] == [INLINE, INLINE, WHOLE, WHOLE, LIST]


def test_what_is_kept_needs_no_copies_of_what_its_nodes_hold() -> None:
    shelf, said = Shelf(), list[dict[str, Any]]()
    for number in range(200):
        said.append(message(number))
        reference, inline = shelf.put(said)
    needed = shelf.pieces(reference).closure(list(keys_of(reference)))
    assert len(needed) < len(shelf.held) / 2
    shelf.held = {key: body for key, body in shelf.held.items() if key in needed}
    assert shelf.get(reference, inline) == said


scalars = st.none() | st.integers() | st.text() | st.binary(max_size=300)
elements = scalars | st.lists(st.integers()) | st.builds(message, st.integers())


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(elements, max_size=80)), min_size=1, max_size=6))
def test_any_history_of_lists_comes_back(steps: list[tuple[int, list[Any]]]) -> None:
    """Lists that grow, shrink at either end, and repeat elements; each checkpoint relies on the one before it."""
    shelf, value = Shelf(), list[Any]()
    kept = []
    for kind, given_elements in steps:
        value = [
            [*value, *given_elements],
            [*given_elements, *value],
            value[len(value) // 3 :] + given_elements,
            given_elements * 3,
        ][kind]
        kept.append((shelf.put(value), list(value)))
    for put, expected in kept:
        assert shelf.get(*put) == expected


def test_a_value_of_others_is_refused() -> None:
    for value in (b"", b"LG1", {"a": 1}, pack({"a": 1}, [b"body"])[:-1]):
        with pytest.raises(ValueError, match=r"."):
            unpack(value)
    assert unpack(pack({"a": 1}, [b"x", b""])) == ({"a": 1}, [b"x", b""])
