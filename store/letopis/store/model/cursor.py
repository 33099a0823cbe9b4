"""Encode the place where a page ends as an opaque cursor, and decode it again."""

from __future__ import annotations

import zlib
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from letopis.store.errors import InvalidInput

T = TypeVar("T")

FORMAT_VERSION: Final = 1
"""Version of the encoding; a cursor of another version is refused."""
MAX_CURSOR_LENGTH: Final = 40_000
"""Characters of a cursor."""
MAX_DECODED_BYTES: Final = 200_000
"""Bytes that a cursor may decompress to."""


@dataclass(frozen=True, slots=True)
class CursorCodec:
    """Encodes and decodes the cursors of one kind of page.

    A cursor holds JSON values, the kind and a format version, compressed and with a checksum. It is not signed: the
    reader of the values checks them as it checks any input.

    :ivar kind: written into each cursor, so that a cursor of another kind is refused.
    :ivar items: what an error calls the items of the page.
    """

    kind: str
    items: str

    def encode(self, *values: Any) -> str:
        """Return a cursor that holds JSON values."""
        plain = orjson.dumps([FORMAT_VERSION, self.kind, *values])
        return urlsafe_b64encode(zlib.compress(plain, 9)).decode("ascii").rstrip("=")

    def decode(self, cursor: object, read: Callable[..., T]) -> T:
        """Return ``read(*values)`` for the values of a cursor.

        :param read: raises ``TypeError`` or ``ValueError`` where a value is wrong.
        :raises InvalidInput: :meth:`encode` did not make this cursor, or ``read`` refused its values.
        """
        try:
            version, kind, *values = _decompressed(cursor)
            if (version, kind) != (FORMAT_VERSION, self.kind):
                raise ValueError  # noqa: TRY301 - every wrong cursor gets one answer
            return read(*values)
        except (TypeError, ValueError, zlib.error) as error:
            raise InvalidInput("after", f"must be the `next` of a page of {self.items}") from error


def _decompressed(cursor: object) -> Any:
    if not isinstance(cursor, str) or len(cursor) > MAX_CURSOR_LENGTH:
        raise TypeError
    packed = b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    # A few bytes can be made to decompress to gigabytes.
    decompressor = zlib.decompressobj()
    plain = decompressor.decompress(packed, MAX_DECODED_BYTES)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError
    return orjson.loads(plain)
