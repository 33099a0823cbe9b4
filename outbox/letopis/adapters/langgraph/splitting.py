"""Store the values of channels by content hash, so that a growing list is not stored again with each checkpoint.

An element of a list is a piece, stored under the hash of its bytes. At boundaries chosen by that hash, about every 32
pieces, all pieces since the last boundary are grouped into a node, and nodes into further nodes. Boundaries depend on
content alone, so two lists that share a beginning or an end share its nodes, and a checkpoint names only a few pieces
of any list.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol

import orjson

from letopis.store.errors import InvalidInput

Typed = tuple[str, bytes]
"""A value as LangGraph's serializers return it: type and bytes."""
Reference = list[Any]
"""How a checkpoint names a value: ``["i", type]`` with the bytes beside it, ``["v", key]`` or ``["l", levels]``."""

INLINE: Final = "i"
WHOLE: Final = "v"
LIST: Final = "l"

_INLINE_BYTES: Final = 128
"""Smaller values are stored in the checkpoint itself, because a record has an overhead of some hundred bytes."""
_SMALL_PIECE_BYTES: Final = 96
"""Lists with smaller elements, on average, are stored whole, because their keys would be larger than they are."""
_IN_NODE_BYTES: Final = 4 * 1024
"""Larger pieces are not copied into a node, which names them instead."""
_BOUNDARY: Final = 32
_LONGEST_NODE: Final = 256
_KEY_BYTES: Final = 18


class Serializer(Protocol):
    """Converts values to bytes and back, as LangGraph's serializers do."""

    def dumps_typed(self, obj: Any, /) -> Typed: ...

    def loads_typed(self, data: Typed, /) -> Any: ...


@dataclass(slots=True)
class _Piece:
    key: str
    ends: bool
    body: bytes
    typed: Typed | None = None
    children: Sequence[_Piece] = ()


@dataclass(slots=True)
class Splitter:
    """Splits the values of one checkpoint.

    :ivar known: keys that are already stored: neither they nor the values they name are stored again.
    :ivar bodies: the values to store, by key.
    """

    serde: Serializer
    known: Collection[str]
    bodies: dict[str, bytes] = field(default_factory=dict)

    def add(self, value: Any) -> tuple[Reference, bytes]:
        """Return the checkpoint's reference to a value, and the bytes stored in the checkpoint itself."""
        if type(value) is list and len(value) > 1 and not isinstance(value[0], int | float | str | None):
            typed = [self.serde.dumps_typed(one) for one in value]
            if sum(len(body) for _, body in typed) >= _SMALL_PIECE_BYTES * len(typed):
                return [LIST, self._fold([_element(one) for one in typed])], b""
        whole = self.serde.dumps_typed(value)
        if len(whole[1]) <= _INLINE_BYTES:
            return [INLINE, whole[0]], whole[1]
        piece = _element(whole)
        self._store(piece)
        return [WHOLE, piece.key], b""

    def _fold(self, pieces: Sequence[_Piece]) -> list[list[str]]:
        levels: list[list[str]] = []
        while pieces:
            nodes, rest = _nodes(pieces)
            for piece in rest:
                self._store(piece)
            levels.append([piece.key for piece in rest])
            pieces = nodes
        return levels

    def _store(self, piece: _Piece) -> None:
        if piece.key in self.known or piece.key in self.bodies:
            return
        self.bodies[piece.key] = piece.body
        for child in piece.children:
            self._store(child)


def keys_of(reference: Reference) -> Iterator[str]:
    """Yield the keys that a checkpoint names directly."""
    if reference[0] == WHOLE:
        yield reference[1]
    elif reference[0] == LIST:
        for level in reference[1]:
            yield from level


class Pieces:
    """The pieces that some checkpoints name, as read so far; a node adds the pieces it contains."""

    def __init__(self) -> None:
        self._typed: dict[str, Typed] = {}
        self._nodes: dict[str, list[str]] = {}
        self._named: dict[str, list[str]] = {}

    def missing(self, keys: Collection[str]) -> list[str]:
        """Return those of some keys, and of the keys they name, that have not been read yet."""
        found = dict[str, None]()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key in self._nodes:
                waiting += self._nodes[key]
            elif key not in self._typed:
                found[key] = None
        return list(found)

    def add(self, key: str, value: object) -> None:
        """Add a piece.

        :raises ValueError: it is none.
        """
        header, bodies = unpack(value)
        if "t" in header:
            self._typed[key] = (header["t"], bodies[0])
            return
        rest = iter(bodies)
        self._nodes[key] = [name for name, _ in header["p"]]
        self._named[key] = [name for name, type_name in header["p"] if type_name is None]
        for name, type_name in header["p"]:
            if type_name is not None:
                self._typed[name] = (type_name, next(rest))

    def closure(self, keys: Collection[str]) -> set[str]:
        """Return keys and all keys they need; pieces inside a node are not needed separately."""
        found = set[str]()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting += self._named.get(key, ())
        return found

    def value(self, reference: Reference, inline: bytes, serde: Serializer) -> Any:
        """Rebuild the value that a checkpoint names."""
        if reference[0] == INLINE:
            return serde.loads_typed((reference[1], inline))
        if reference[0] == WHOLE:
            return serde.loads_typed(self._typed[reference[1]])
        return [
            serde.loads_typed(self._typed[key])
            for level in reversed(reference[1])
            for top in level
            for key in self._elements(top)
        ]

    def _elements(self, key: str) -> Iterator[str]:
        if key in self._nodes:
            for child in self._nodes[key]:
                yield from self._elements(child)
        else:
            yield key


def references(channels: Mapping[str, Reference]) -> set[str]:
    """Return the keys that a checkpoint names."""
    return {key for reference in channels.values() for key in keys_of(reference)}


def _element(typed: Typed) -> _Piece:
    digest = sha256(b"%s\0%s" % (typed[0].encode(), typed[1])).digest()
    return _Piece(_key(digest), _ends(digest), pack({"t": typed[0]}, [typed[1]]), typed)


def _nodes(pieces: Sequence[_Piece]) -> tuple[list[_Piece], Sequence[_Piece]]:
    """Return the nodes of all pieces up to the last boundary, and the pieces after it."""
    nodes, start = [], 0
    for number, piece in enumerate(pieces, start=1):
        # A node of one piece would only be another name for it.
        if number - start > 1 and (piece.ends or number - start == _LONGEST_NODE):
            nodes.append(_node(pieces[start:number]))
            start = number
    return nodes, pieces[start:]


def _node(children: Sequence[_Piece]) -> _Piece:
    held = [child.typed if child.typed and len(child.typed[1]) <= _IN_NODE_BYTES else None for child in children]
    body = pack(
        {"p": [[child.key, one and one[0]] for child, one in zip(children, held, strict=True)]},
        [one[1] for one in held if one],
    )
    digest = sha256(b"node\0" + "".join(child.key for child in children).encode()).digest()
    return _Piece(
        _key(digest),
        _ends(digest),
        body,
        children=[child for child, one in zip(children, held, strict=True) if one is None],
    )


def _key(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest[:_KEY_BYTES]).decode().rstrip("=")


def _ends(digest: bytes) -> bool:
    return digest[-1] % _BOUNDARY == 0


_MAGIC: Final = b"LG1"
_LENGTH_BYTES: Final = 4
_START: Final = len(_MAGIC) + _LENGTH_BYTES


def pack(header: Mapping[str, Any], bodies: Sequence[bytes] = ()) -> bytes:
    """Return one value; the header need not name the sizes of the bodies.

    :raises InvalidInput: the header has invalid text, or values that are not JSON.
    """
    try:
        head = orjson.dumps({**header, "sizes": [len(body) for body in bodies]})
    except TypeError as error:
        raise InvalidInput("checkpoint", f"has a name that cannot be stored: {error}") from None
    return b"".join((_MAGIC, len(head).to_bytes(_LENGTH_BYTES, "big"), head, *bodies))


def unpack(value: object) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header and the bodies of :func:`pack`.

    :raises ValueError: the value was not made by :func:`pack`.
    """
    if not isinstance(value, bytes) or not value.startswith(_MAGIC):
        raise ValueError("not written by this adapter")
    at = _START + int.from_bytes(value[len(_MAGIC) : _START], "big")
    header: dict[str, Any] = orjson.loads(value[_START:at])
    bodies = []
    for size in header.pop("sizes"):
        bodies.append(value[at : at + size])
        at += size
    if at != len(value):
        raise ValueError(f"is {len(value)} bytes long, its header says {at}")
    return header, bodies
