"""Adapters import their framework when they are imported themselves, and say what is missing."""

import subprocess
import sys

import pytest

NAMED_ALIKE = ("agent_framework", "aiogram", "haystack", "langgraph", "llama_index", "pydantic_ai", "pyrogram")
PACKAGES = {name: name for name in (*NAMED_ALIKE, "strands", "telegram")}
PACKAGES |= {"langchain": "langchain_core", "google_adk": "google.adk"}
FREE = ("formats.openai_chat", "openai_agents", "telegram_core.bot", "voxpersona")
"""Adapters that import no framework."""


def printed_by(code: str) -> str:
    """Run code in a process of its own: this one has imported the frameworks."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_letopis_comes_without_a_framework() -> None:
    modules = ("letopis.store", "letopis.outbox", "letopis.adapters", *(f"letopis.adapters.{name}" for name in FREE))
    frameworks = {*PACKAGES.values(), "agents", "pydantic"}
    code = f"import sys; from letopis import History; History('bot.db'); import {', '.join(modules)}"
    assert printed_by(f"{code}; print({frameworks!r} & sys.modules.keys())") == "set()\n"


@pytest.mark.parametrize(("adapter", "package"), PACKAGES.items())
def test_an_adapter_without_its_framework_names_the_extra(adapter: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    import letopis.adapters.{adapter}\nexcept ImportError as error:\n    print(error)"
    )
    assert f"letopis[{adapter.replace('_', '-')}]" in printed_by(code)
