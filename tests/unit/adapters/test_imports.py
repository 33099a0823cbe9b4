"""Adapters import their framework when they are imported themselves, and say what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = {
    *("agent_framework", "agents", "aiogram", "google.adk", "haystack", "langchain_core", "llama_index"),
    *("langgraph", "pydantic", "pydantic_ai", "pyrogram", "strands", "telegram"),
}


def loaded_by(statement: str) -> list[str]:
    """Which frameworks a statement imports, in a process of its own: this one has imported them."""
    code = f"import sys; {statement}; print(*sorted({FRAMEWORKS!r} & sys.modules.keys()))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_letopis_comes_without_a_framework() -> None:
    imports = "import letopis, letopis.outbox, letopis.adapters.formats.openai_chat, letopis.adapters.openai_agents"
    assert loaded_by("from letopis import History; import letopis.store, letopis.adapters; History('bot.db')") == []
    assert loaded_by(imports) == []
    assert loaded_by("import letopis.adapters.telegram_core.bot, letopis.adapters.telegram_core.notices") == []
    assert loaded_by("import letopis.adapters.voxpersona") == []


NAMED_ALIKE = [
    *("agent_framework", "aiogram", "haystack", "langgraph", "llama_index"),
    *("pydantic_ai", "pyrogram", "strands", "telegram"),
]


@pytest.mark.parametrize(
    ("adapter", "package"),
    [*((name, name) for name in NAMED_ALIKE), ("langchain", "langchain_core"), ("google_adk", "google.adk")],
)
def test_an_adapter_without_its_framework_names_the_extra(adapter: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    import letopis.adapters.{adapter}\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"letopis[{adapter.replace('_', '-')}]" in done.stdout
