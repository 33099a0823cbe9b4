"""Lay out the help of a verb: its own options, examples, and the options of every command in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click

SHARED: Final = ("--outbox", "--store", "--config", "--debug")
"""The options of every command, which only the help of ``letopis`` itself explains one by one."""
_SHARED_LINE: Final = f"Options of every command: {', '.join(SHARED)}, --help (see `letopis --help`)."


class SharedOption(click.Option):
    """An option of every command."""


class Verb(click.Command):
    """A command whose help ends with examples.

    :param examples: command lines as a user types them, each with or without a comment behind it.
    """

    def __init__(self, *given: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*given, **options)
        self.examples = tuple(examples)

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
    found = [
        record
        for parameter in command.get_params(ctx)
        if not isinstance(parameter, click.Argument)
        and not (shared and (isinstance(parameter, SharedOption) or "--help" in parameter.opts))
        and (record := parameter.get_help_record(ctx)) is not None
    ]
    if found:
        with formatter.section("Options"):
            formatter.write_dl(found)


def write_shared(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the names of the shared options, except in the help of ``letopis``, which explains them."""
    if ctx.parent is not None:
        formatter.write_paragraph()
        formatter.write_text(_SHARED_LINE)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, on one line."""
    line = " ".join(text.partition("\n\n")[0].split())
    return f"{line.partition('. ')[0].removesuffix('.')}."
