"""Read any provider's images, audio and documents as file references, and tell what a file is."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from letopis.store.model.parts import File

OPENAI_FILE: Final = "openai:"
ANTHROPIC_FILE: Final = "anthropic:"
"""URI schemes for files that were uploaded to a provider."""
UPLOADED: Final = frozenset({"openai", "anthropic"})
_URL_SAFE: Final = str.maketrans("-_", "+/")


def file_of(block: Mapping[str, Any]) -> File | None:
    """Return the file in a block; ``None`` if it has none that a URI can name.

    Base64 becomes a ``data:`` URI, unchanged. The id of an uploaded file gets the prefix ``openai:`` or ``anthropic:``.
    """
    match block:
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _image(url)
        case {"type": "input_image", "image_url": str(url)}:
            return _image(url)
        case {"type": "input_image", "file_id": str(file_id)}:
            return File(OPENAI_FILE + file_id, "image/*")
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(kind)}}:
            media_type = "audio/mpeg" if kind == "mp3" else f"audio/{kind}"
            return File(f"data:{media_type};base64,{data}", media_type)
        case {"type": "file", "file": Mapping() as inner}:
            return _document(inner)
        case {"type": "input_file"}:
            return _document(block)
        case {"type": "file", "url": str(url)}:
            return File(url, _text(block.get("mediaType")), _text(block.get("filename")))
        case {"type": "image" | "document" | "audio" | "video" as kind, "source": Mapping() as source}:
            title = about.get("filename") if isinstance(about := block.get("metadata"), Mapping) else block.get("title")
            return _source(source, None if kind == "document" else f"{kind}/*", title)
    inline = _either(block, "inlineData")
    if isinstance(inline, Mapping) and isinstance(inline.get("data"), str):
        kind = _text(_either(inline, "mimeType"))
        return File(f"data:{kind or ''};base64,{inline['data']}", kind, _text(_either(inline, "displayName")))
    stored = _either(block, "fileData")
    if isinstance(stored, Mapping) and isinstance(uri := _either(stored, "fileUri"), str):
        return File(uri, _text(_either(stored, "mimeType")), _text(_either(stored, "displayName")))
    return None


def media_type_of(file: File) -> str:
    """Return the media type of a file: its own, that of its ``data:`` URI, or that of its name; empty if unknown."""
    if file.media_type and not file.media_type.endswith("/*"):
        return file.media_type
    if file.uri.startswith("data:"):
        return file.uri[5:].partition(",")[0].partition(";")[0]
    guessed = mimetypes.guess_type(file.name or urlsplit(file.uri).path)[0]
    return guessed or file.media_type or ""


def base64_of(file: File) -> tuple[str, str] | None:
    """Return media type and standard base64 of a file whose bytes are in its URI; ``None`` for other files."""
    head, comma, data = file.uri.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        return None
    plain = data.translate(_URL_SAFE)
    return media_type_of(file), plain + "=" * (-len(plain) % 4)


def data_uri(file: File) -> str | None:
    """Return a ``data:`` URI in standard base64; ``None`` if the bytes of the file are elsewhere."""
    found = base64_of(file)
    return None if found is None else f"data:{found[0]};base64,{found[1]}"


def is_url(file: File) -> bool:
    """Return True if anyone can fetch the file by its URI."""
    return file.uri.startswith(("https://", "http://"))


def mention(file: File) -> str:
    """Return a text for a file that a provider does not accept: its name, address or kind, never its bytes."""
    return f"[{file.name or (media_type_of(file) or 'file' if file.uri.startswith('data:') else file.uri)}]"


def _image(url: str) -> File:
    return File(url, media_type_of(File(url)) or "image/*")


def _document(inner: Mapping[str, Any]) -> File | None:
    name = _text(inner.get("filename"))
    match inner:
        case {"file_id": str(file_id)}:
            return File(OPENAI_FILE + file_id, None, name)
        case {"file_url": str(url)}:
            return File(url, media_type_of(File(url, None, name)) or None, name)
        case {"file_data": str(data)}:
            uri = data if data.startswith("data:") else f"data:;base64,{data}"
            return File(uri, media_type_of(File(uri)) or media_type_of(File("", None, name)) or None, name)
    return None


def _source(source: Mapping[str, Any], media_type: str | None, title: Any) -> File | None:
    name = _text(title)
    match source:
        case {"type": "base64", "data": str(data), "media_type": str(kind)}:
            return File(f"data:{kind};base64,{data}", kind, name)
        case {"type": "url", "url": str(url)}:
            return File(url, media_type_of(File(url, media_type)) or None, name)
        case {"type": "file", "file_id": str(file_id)}:
            return File(ANTHROPIC_FILE + file_id, media_type, name)
        case {"type": "data", "value": str(data), "mimeType": str(kind)}:
            return File(f"data:{kind};base64,{data}", kind, name)
        case {"type": "url", "value": str(url)}:
            return File(url, _text(source.get("mimeType")) or media_type_of(File(url, media_type)) or None, name)
        case {"type": "file", "value": str(handle), "provider": str(provider)} if provider in UPLOADED:
            return File(f"{provider}:{handle}", _text(source.get("mimeType")) or media_type, name)
    return None


def _either(inner: Mapping[str, Any], key: str) -> Any:
    """Return a value from a Gemini object, whose keys may be in camel or snake case."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)
    found = inner.get(key)
    return inner.get(snake) if found is None else found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
