"""Provide a click group that imports a verb only when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from letopis.outbox.cli.interface.command import VerbGroup

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class LazyGroup(VerbGroup):
    """A group that knows its verbs by name, module and one line of help.

    :param verbs: from name to (``module:attribute``, short help), in the order in which they are listed.
    :param elsewhere: from words that are no verb of this group to the commands that are meant.
    """

    def __init__(
        self,
        *given: Any,
        verbs: Mapping[str, tuple[str, str]],
        elsewhere: Mapping[str, tuple[str, ...]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*given, **options)
        self._verbs = verbs
        self._elsewhere = elsewhere or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the verbs."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the verb; ``None`` if there is none of the name."""
        if cmd_name not in self._verbs:
            return None
        module, _, attribute = self._verbs[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments name, and the remaining arguments."""
        name = args[0] if args else ""
        if not name.startswith("-") and name not in self._verbs and not ctx.resilient_parsing:
            ctx.fail(f"There is no command {name[:60]!a}: {self._hint(name)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the verbs and options that begin with a word, without importing any verb."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=line) for name, (_, line) in self._verbs.items() if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def _hint(self, name: str) -> str:
        if meant := self._elsewhere.get(name):
            return f"did you mean {' or '.join(f'`{one}`' for one in meant)}?"
        close = get_close_matches(name, self._verbs, n=1)
        return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self._verbs)}."
