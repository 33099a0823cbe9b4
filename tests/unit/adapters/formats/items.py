"""Make conversations in the formats of the providers, of every kind of block that their SDKs describe."""

import base64
import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

Item = dict[str, Any]

WORDS = ["tea", "Kazan", "rain", "степь", "🦔", "the", "of", "and", "weather\n\n`code`", "\\", '"', "{}"]
PICTURE = "https://example.org/a.png"


class Chance(random.Random):
    """Random JSON values in the shapes that models and tools write."""

    def words(self, most: int = 30) -> str:
        return " ".join(self.choices(WORDS, k=self.randrange(1, most)))

    def maybe(self, likely: float = 0.5) -> bool:
        return self.random() < likely

    def some(self, **fields: Callable[[], Any]) -> Item:
        """Return each of the fields, or not, in any order."""
        kept = [name for name in fields if self.maybe(0.3)]
        self.shuffle(kept)
        return {name: fields[name]() for name in kept}

    def few(self, blocks: Sequence[Callable[[], Item]]) -> list[Item]:
        """Return one to three of the blocks, which may be alike."""
        return [self.choice(blocks)() for _ in range(self.randrange(1, 4))]

    def ident(self, prefix: str) -> str:
        return f"{prefix}_{self.getrandbits(96):024x}"

    def data(self, *, url_safe: bool = False) -> str:
        raw = self.randbytes(self.randrange(1, 200))
        return (base64.urlsafe_b64encode if url_safe else base64.b64encode)(raw).decode()

    def uri(self, media_type: str) -> str:
        return f"data:{media_type};base64,{self.data()}"

    def json(self, depth: int = 3) -> Any:
        kind = self.randrange(7 if depth else 5)
        if kind == 5:
            return [self.json(depth - 1) for _ in range(self.randrange(4))]
        if kind == 6:
            return self.object(depth - 1)
        return (self.words(4), self.randrange(-(2**53), 2**53), self.uniform(-1e6, 1e6), self.maybe(), None)[kind]

    def object(self, depth: int = 2) -> Item:
        names = ["city", "unit", "zone", "a", "b", "$", "type", "ключ"]
        return {self.choice(names): self.json(depth) for _ in range(3)}

    def arguments(self) -> str:
        return self.choice(['{"city": "Kazan",\n  "unit":"c"}', "{}", "", '{"broken": ', '{"b":1.0,"a":[2]}'])

    def fill(self, item: Item) -> Item:
        """Return the item with its keys in any order, and a key that no SDK knows yet."""
        keys = list(item)
        if self.maybe(0.2):
            self.shuffle(keys)
        return {key: item[key] for key in keys} | ({"new_field": self.json()} if self.maybe(0.1) else {})


def chat_conversation(chance: Chance) -> list[Item]:
    def words() -> str | list[Item]:
        return chance.choice([chance.words(), [{"type": "text", "text": chance.words()}]])

    items = [_chat_user(chance)]
    if chance.maybe(0.3):
        items.insert(0, {"role": chance.choice(["system", "developer"]), "content": words()})
    if chance.maybe(0.6):
        calls = [_chat_call(chance) for _ in range(chance.randrange(1, 4))]
        items.append({"role": "assistant", "content": chance.choice([None, "", chance.words()]), "tool_calls": calls})
        items += [{"role": "tool", "tool_call_id": call["id"], "content": words()} for call in calls]
    refused = {"content": None, "refusal": chance.words()}
    heard = {"content": None, "audio": {"id": chance.ident("audio")}}
    answer = chance.choice(
        [{"content": chance.words()}, {"content": words(), "reasoning_content": "hm"}, refused, heard]
    )
    # What `model_dump()` leaves in: keys without a value.
    dumped = dict.fromkeys(("refusal", "annotations", "audio", "function_call"), None) if chance.maybe(0.2) else {}
    items.append({"role": "assistant", **dumped, **answer})
    return [chance.fill(item) for item in items]


def _chat_user(chance: Chance) -> Item:
    def block(kind: str, **fields: Any) -> Item:
        return {"type": kind, kind: fields}

    named = chance.some(name=lambda: "Ann")
    if chance.maybe(0.4):
        return {"role": "user", "content": chance.words(), **named}
    blocks = [
        lambda: {"type": "text", "text": chance.words()},
        lambda: block("image_url", url=PICTURE, **chance.some(detail=lambda: "low")),
        lambda: block("image_url", url=chance.uri("image/png")),
        lambda: block("input_audio", data=chance.data(), format="wav"),
        lambda: block("file", file_id=chance.ident("file")),
        lambda: block("file", file_data=chance.uri("application/pdf"), filename="a.pdf"),
    ]
    return {"role": "user", "content": chance.few(blocks), **named}


def _chat_call(chance: Chance) -> Item:
    if chance.maybe(0.2):
        return {"id": chance.ident("call"), "type": "custom", "custom": {"name": "shell", "input": chance.words()}}
    function = chance.fill({"name": "weather", "arguments": chance.arguments()})
    return chance.fill({"id": chance.ident("call"), "type": "function", "function": function})


def responses_conversation(chance: Chance) -> list[Item]:
    items: list[Item] = [{"role": "developer", "content": chance.words()}] if chance.maybe(0.2) else []
    items.append(_responses_user(chance))
    calls = [chance.ident("call") for _ in range(chance.randrange(3))]
    for call_id in calls:
        if chance.maybe(0.5):
            items.append(_responses_reasoning(chance))
        kind, words = ("custom_tool_call", "input") if chance.maybe(0.2) else ("function_call", "arguments")
        item = {"type": kind, "call_id": call_id, "name": "weather", words: chance.arguments()}
        items.append(item | chance.some(id=lambda: chance.ident("fc"), status=lambda: "completed"))
    for call_id, item in zip(calls, [one for one in items if "call_id" in one], strict=True):
        parts = [{"type": "input_text", "text": chance.words()}, _responses_image(chance)]
        output = chance.choice([chance.words(), parts])
        items.append({"type": f"{item['type']}_output", "call_id": call_id, "output": output})
    if chance.maybe(0.3):
        hosted = {"type": "image_generation_call", "id": chance.ident("ig"), "result": chance.data()}
        items.append({**hosted, "status": "completed"})
    items.append(_responses_answer(chance))
    return [chance.fill(item) for item in items]


def _responses_image(chance: Chance) -> Item:
    stored = {"file_id": chance.ident("file"), "image_url": None}
    source = chance.choice([{"image_url": PICTURE}, {"image_url": chance.uri("image/png")}, stored])
    return {"type": "input_image", "detail": "auto", **source}


def _responses_user(chance: Chance) -> Item:
    if chance.maybe(0.3):
        return {"role": "user", "content": chance.words()}
    blocks = [
        lambda: {"type": "input_text", "text": chance.words()},
        lambda: _responses_image(chance),
        lambda: {"type": "input_file", "file_id": chance.ident("file")},
        lambda: {"type": "input_file", "filename": "a.pdf", "file_data": chance.uri("application/pdf")},
    ]
    return {"type": "message", "role": "user", "content": chance.few(blocks)}


def _responses_reasoning(chance: Chance) -> Item:
    summary = [{"type": "summary_text", "text": chance.words()}] if chance.maybe() else []
    more = chance.some(encrypted_content=chance.data, status=lambda: None)
    return {"id": chance.ident("rs"), "type": "reasoning", "summary": summary, **more}


def _responses_answer(chance: Chance) -> Item:
    annotation = {"type": "url_citation", "url": "https://example.org", "title": "t", "start_index": 0, "end_index": 3}
    text = {"type": "output_text", "text": chance.words(), "annotations": [annotation] * chance.maybe(0.3)}
    content = [text, {"type": "refusal", "refusal": chance.words()}][: chance.randrange(1, 3)]
    about = {"id": chance.ident("msg"), "type": "message", "role": "assistant", "status": "completed"}
    return {**about, "content": content, **chance.some(phase=lambda: "final_answer")}


def anthropic_conversation(chance: Chance) -> list[Item]:
    items = [_anthropic_user(chance)]
    if chance.maybe(0.6):
        calls = [chance.ident("toolu") for _ in range(chance.randrange(1, 4))]
        thought = {"type": "thinking", "thinking": chance.words(), "signature": chance.data()}
        hidden = {"type": "redacted_thinking", "data": chance.data()}
        asked = [
            chance.fill({"type": "tool_use", "id": call, "name": "weather", "input": chance.object()}) for call in calls
        ]
        before = [[], [thought], [hidden], [thought, hidden, _anthropic_text(chance)]]
        items.append({"role": "assistant", "content": [*chance.choice(before), *asked]})
        chance.shuffle(calls)
        said = [_anthropic_text(chance)] if chance.maybe(0.2) else []
        items.append({"role": "user", "content": [*(_anthropic_result(chance, call) for call in calls), *said]})
    texts = [_anthropic_text(chance), _anthropic_text(chance)]
    items.append({"role": "assistant", "content": chance.choice([chance.words(), texts[:1], texts])})
    return [chance.fill(item) for item in items]


def _anthropic_text(chance: Chance) -> Item:
    place = {"document_index": 0, "document_title": None, "start_char_index": 0, "end_char_index": 9}
    citation = {"type": "char_location", "cited_text": chance.words(), **place}
    more = chance.some(citations=lambda: [citation], cache_control=lambda: {"type": "ephemeral", "ttl": "1h"})
    return {"type": "text", "text": chance.words(), **more}


def _anthropic_image(chance: Chance) -> Item:
    inline = {"type": "base64", "media_type": "image/png", "data": chance.data()}
    named = [{"type": "url", "url": PICTURE}, {"type": "file", "file_id": chance.ident("file")}]
    return {"type": "image", "source": chance.choice([inline, *named])}


def _anthropic_document(chance: Chance) -> Item:
    inline = {"type": "base64", "media_type": "application/pdf", "data": chance.data()}
    text = {"type": "text", "media_type": "text/plain", "data": chance.words()}
    return {"type": "document", "source": chance.choice([inline, text]), **chance.some(title=lambda: "A page")}


def _anthropic_user(chance: Chance) -> Item:
    if chance.maybe(0.3):
        return {"role": "user", "content": chance.words()}
    blocks = [partial(make, chance) for make in (_anthropic_text, _anthropic_image, _anthropic_document)]
    return {"role": "user", "content": chance.few(blocks)}


def _anthropic_result(chance: Chance, call_id: str) -> Item:
    block: Item = {"type": "tool_result", "tool_use_id": call_id}
    if chance.maybe(0.9):
        block["content"] = chance.choice([chance.words(), [_anthropic_text(chance), _anthropic_image(chance)], ""])
    return block | chance.some(is_error=lambda: True, cache_control=lambda: {"type": "ephemeral"})


def gemini_conversation(chance: Chance) -> list[Item]:
    """A turn of Gemini, its keys written in either way."""
    snake = chance.maybe()
    items = [{"role": "user", "parts": chance.few(_gemini_parts(chance))}]
    if chance.maybe(0.6):
        names = [chance.choice(["weather", "now"]) for _ in range(chance.randrange(1, 4))]
        ids = [{"id": chance.ident("fc")} if chance.maybe(0.3) else {} for _ in names]
        calls = [
            {"functionCall": {**given, "name": name, "args": chance.object()}, **_gemini_signature(chance)}
            for name, given in zip(names, ids, strict=True)
        ]
        thought = [{"text": chance.words(), "thought": True}] if chance.maybe() else []
        items.append({"role": "model", "parts": [*thought, *calls]})
        results = [
            {"functionResponse": {**given, "name": name, "response": chance.choice([chance.object(), {"error": "no"}])}}
            for name, given in zip(names, ids, strict=True)
        ]
        items.append({"role": "user", "parts": results})
    items.append({"role": "model", "parts": [{"text": chance.words(), **_gemini_signature(chance)}]})
    return [chance.fill(_snake(item) if snake else item) for item in items]


def _gemini_signature(chance: Chance) -> Item:
    return chance.some(thoughtSignature=lambda: chance.data(url_safe=True))


def _gemini_parts(chance: Chance) -> list[Callable[[], Item]]:
    file = {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc", "mimeType": "image/png"}
    return [
        lambda: {"text": chance.words()},
        lambda: {"inlineData": {"mimeType": "image/png", "data": chance.data(url_safe=True)}},
        lambda: {"fileData": file},
        lambda: {"fileData": {"fileUri": "gs://bucket/video.mp4"}, "videoMetadata": {"startOffset": "1s"}},
    ]


def _snake(value: Any) -> Any:
    if isinstance(value, dict):
        return {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", key): _snake(value[key]) for key in value}
    return [_snake(item) for item in value] if isinstance(value, list) else value


def ag_ui_conversation(chance: Chance) -> list[Item]:
    def media(kind: str, media_type: str) -> Item:
        inline = {"type": "data", "value": chance.data(), "mimeType": media_type}
        handle = {"type": "file", "value": chance.ident("file"), "provider": chance.choice(["openai", "google"])}
        source = chance.choice([inline, {"type": "url", "value": PICTURE}, handle])
        return {"type": kind, "source": source, **chance.some(metadata=lambda: {"filename": "a.bin"})}

    def content() -> str | list[Item]:
        blocks = [
            lambda: {"type": "text", "text": chance.words()},
            lambda: media("image", "image/png"),
            lambda: media("document", "application/pdf"),
        ]
        return chance.words() if chance.maybe() else chance.few(blocks)

    def item(role: str, **fields: Any) -> Item:
        return {"id": chance.ident("m"), "role": role, **fields, **chance.some(metadata=chance.object)}

    items = [item("user", content=content(), **chance.some(name=lambda: "Ann"))]
    if chance.maybe(0.3):
        items.insert(0, item(chance.choice(["system", "developer"]), content=chance.words()))
    if chance.maybe():
        items.append(item("reasoning", content=chance.words(), **chance.some(encryptedValue=chance.data)))
    if chance.maybe(0.3):
        items.append(item("activity", activityType="PLAN", content=chance.object()))
    if chance.maybe(0.6):
        functions = [{"name": "weather", "arguments": chance.arguments()} for _ in range(chance.randrange(1, 4))]
        calls = [{"id": chance.ident("call"), "type": "function", "function": one} for one in functions]
        items.append(item("assistant", **chance.some(content=chance.words), toolCalls=calls))
        for call in calls:
            failed = chance.some(error=chance.words)
            items.append(item("tool", content=content(), toolCallId=call["id"], **failed))
    items.append(item("assistant", content=chance.words()))
    return [chance.fill(one) for one in items]


def ui_conversation(chance: Chance) -> list[Item]:
    def tool() -> Item:
        kinds = [{"type": "tool-weather"}, {"type": "dynamic-tool", "toolName": "weather"}]
        states: list[Item] = [
            {"state": "output-available", "input": chance.object(), "output": chance.json()},
            {"state": "output-error", "input": chance.object(), "errorText": chance.words()},
        ]
        return chance.choice(kinds) | {"toolCallId": chance.ident("call")} | chance.choice(states)

    def text() -> Item:
        return {"type": "text", "text": chance.words(), **chance.some(state=lambda: "done")}

    blocks = [
        text,
        lambda: {"type": "reasoning", "text": chance.words(), **chance.some(providerMetadata=lambda: {"a": {"b": 1}})},
        lambda: {"type": "source-url", "sourceId": chance.ident("s"), "url": PICTURE},
        lambda: {"type": "data-weather", "data": chance.json(), **chance.some(id=lambda: chance.ident("d"))},
        lambda: {"type": "file", "mediaType": "image/png", "url": chance.uri("image/png")},
        tool,
    ]
    asked = [text, lambda: {"type": "file", "mediaType": "application/pdf", "filename": "a.pdf", "url": PICTURE}]
    steps = [
        part
        for _ in range(chance.randrange(1, 4))
        for part in ({"type": "step-start"}, *chance.few(blocks), *(tool() for _ in range(chance.randrange(3))))
    ]
    items: list[Item] = [
        {"role": "user", "parts": chance.few(asked)},
        {"role": "assistant", "parts": [*steps, {"type": "step-start"}, text()]},
    ]
    if chance.maybe(0.3):
        items.insert(0, {"role": "system", "parts": [text()]})
    named = [{"id": chance.ident("m"), **item, **chance.some(metadata=chance.object)} for item in items]
    return [chance.fill(item) for item in named]
