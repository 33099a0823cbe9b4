"""Lay out the help of verbs, and import a verb only when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHARED: Final = ("--outbox", "--store", "--config", "--debug")
"""The options of every command, which only the help of ``letopis`` itself explains one by one."""
_SHARED_LINE: Final = f"Options of every command: {', '.join(SHARED)}, --help (see `letopis --help`)."


class SharedOption(click.Option):
    """An option of every command."""


class Verb(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *given: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*given, **options)
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; of one too many, say how a file or a store is named."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not error.message.startswith("Got unexpected extra argument"):
                raise
            ctx.fail(f"{error.message}; a file is named by --outbox, a history store by --store")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verb's own options, its examples, and the names of the shared options."""
        write_options(self, ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        write_shared(ctx, formatter)


class VerbGroup(click.Group):
    """A group of verbs, listed with the first sentence of their help."""

    command_class = Verb

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the group's own options, its verbs, and the names of the shared options."""
        write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)
        write_shared(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs; unlike click's, no line of it is cut."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, first_sentence(command.help or ""))
                    for name in self.list_commands(ctx)
                    if (command := self.get_command(ctx, name)) is not None
                ]
            )


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options that are explained here: all of ``letopis`` itself, those of a verb that are its own."""
    shared = ctx.parent is not None
    records = [
        record
        for parameter in command.get_params(ctx)
        if not isinstance(parameter, click.Argument)
        and not (shared and (isinstance(parameter, SharedOption) or "--help" in parameter.opts))
        and (record := parameter.get_help_record(ctx)) is not None
    ]
    if records:
        with formatter.section("Options"):
            formatter.write_dl(records)


def write_shared(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the names of the shared options, except in the help of ``letopis``, which explains them."""
    if ctx.parent is not None:
        formatter.write_paragraph()
        formatter.write_text(_SHARED_LINE)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, on one line."""
    line = " ".join(text.partition("\n\n")[0].split())
    return f"{line.partition('. ')[0].removesuffix('.')}."


class LazyGroup(VerbGroup):
    """A group that knows its verbs by name, module and one line of help."""

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

        items = [
            CompletionItem(name, help=line) for name, (_, line) in self._verbs.items() if name.startswith(incomplete)
        ]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def _hint(self, name: str) -> str:
        if meant := self._elsewhere.get(name):
            return f"did you mean {' or '.join(f'`{command}`' for command in meant)}?"
        close = get_close_matches(name, self._verbs, n=1)
        return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(self._verbs)}."
