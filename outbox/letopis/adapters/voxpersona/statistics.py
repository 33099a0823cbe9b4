"""Count a user's messages as the seed's bot does, and render the counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from letopis.adapters.voxpersona.mapping import ANSWER, QUESTION


def count_messages(chats: int, messages: Iterable[Mapping[str, Any]], *, since: str) -> dict[str, int]:
    """Return the counts of messages since ``since``, in local time as the seed writes it."""
    taken = [one for one in messages if one["timestamp"] >= since]
    answers = [one for one in taken if one["type"] == ANSWER]
    return {
        "total_questions": sum(one["type"] == QUESTION for one in taken),
        "total_answers": len(answers),
        "fast_searches": sum(one["search_type"] == "fast" for one in answers),
        "deep_searches": sum(one["search_type"] == "deep" for one in answers),
        "total_tokens": sum(one["tokens"] for one in taken),
        "files_sent": sum(one["sent_as"] == "file" for one in answers),
        "conversations_count": chats,
        "total_messages": len(taken),
    }


def render(stats: Mapping[str, int]) -> str:
    """Return the counts of 30 days as the bot displays them."""
    lines = [
        "📈 **Ваша статистика (за 30 дней):**",
        "",
        f"💬 Всего чатов: {stats['conversations_count']}",
        f"📝 Всего сообщений: {stats['total_messages']:,}",
        f"🤔 Всего вопросов: {stats['total_questions']:,}",
        f"🤖 Всего ответов: {stats['total_answers']:,}",
        f"⚡ Быстрых поисков: {stats['fast_searches']:,}",
        f"🔍 Глубоких поисков: {stats['deep_searches']:,}",
        f"📝 Всего токенов: {stats['total_tokens']:,}",
        f"📎 Сохраненных файлов: {stats['files_sent']:,}",
        "",
    ]
    if stats["total_questions"]:
        lines.append(f"💡 Средняя длина вопроса: {stats['total_tokens'] / stats['total_questions']:.1f} токенов")
    if stats["total_answers"]:
        lines.append(f"🎯 Глубоких поисков: {100 * stats['deep_searches'] / stats['total_answers']:.1f}%")
    return "\n".join(lines) + "\n"
