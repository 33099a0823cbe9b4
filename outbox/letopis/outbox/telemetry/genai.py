"""Describe appended messages by OpenTelemetry's conventions for generative AI.

The names are literals: the conventions have the status *Development*, live in a repository of their own, and Python's
constants for them are deprecated. See https://github.com/open-telemetry/semantic-conventions-genai,
``docs/registry/attributes/gen-ai.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

CONVERSATION_ID: Final = "gen_ai.conversation.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING: Final = "gen_ai.usage.reasoning.output_tokens"

# By attribute: where providers put the number in the object `usage` of their answers, and the short names of ours.
_PLACES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    INPUT_TOKENS: (("input_tokens",), ("prompt_tokens",), ("promptTokenCount",), ("prompt_token_count",), ("input",)),
    OUTPUT_TOKENS: (
        ("output_tokens",),
        ("completion_tokens",),
        ("candidatesTokenCount",),
        ("candidates_token_count",),
        ("output",),
    ),
    CACHE_READ: (
        ("cache_read_input_tokens",),
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("cachedContentTokenCount",),
        ("cached_content_token_count",),
    ),
    CACHE_CREATION: (("cache_creation_input_tokens",),),
    REASONING: (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
        ("thoughtsTokenCount",),
        ("thoughts_token_count",),
    ),
}
_OUTSIDE_INPUT: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Anthropic counts these beside ``input_tokens``; the conventions count them as a part of it."""
_OUTSIDE_OUTPUT: Final = ("thoughtsTokenCount", "thoughts_token_count")
"""Gemini counts these beside the tokens of the answer; the conventions count them as a part of it."""


def usage_attributes(usages: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the tokens that messages used, added up, by attribute; what no message names is left out."""
    total: dict[str, int] = {}
    for usage in usages:
        for name, places in _PLACES.items():
            if (count := _first(usage, places)) is not None:
                total[name] = total.get(name, 0) + count
        for name, beside in ((INPUT_TOKENS, _OUTSIDE_INPUT), (OUTPUT_TOKENS, _OUTSIDE_OUTPUT)):
            if name in total:
                total[name] += sum(_count(usage.get(key)) or 0 for key in beside)
    return total


def _first(usage: Mapping[str, Any], places: Iterable[tuple[str, ...]]) -> int | None:
    for place in places:
        value: Any = usage
        for key in place:
            value = value.get(key) if isinstance(value, Mapping) else None
        if (count := _count(value)) is not None:
            return count
    return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
