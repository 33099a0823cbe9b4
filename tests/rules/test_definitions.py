"""An editor's "go to definition" leads from a public method to its statement: no lambda and no string is in the way."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

_APPEND = (
    "history.append:Appender.append file.outbox_file:OutboxFile.append file.writer:Writer.submit"
    " file.writer:Writer._begin file.committer:Committer.commit file.committer:Committer._transact"
    " file.committer:Committer._append event_log.append:append_events event_log.append:INSERT_EVENTS"
)
WAYS = {
    "append": f"history.history:History.append {_APPEND}",
    "messages": "history.history:History.messages history.read:HistoryReader.messages"
    " history.read:HistoryReader._with_inherited history.read:HistoryReader._own"
    " pending_reads.read_path:ReadPath.read_window store.runtime:StoreRuntime.view"
    " store.read.file_reader:FileReader.view_of store.read.file_reader:FileReader.messages",
    "messages of a server": "store.runtime:StoreRuntime.view store.read.reader:Reader.view_in_one"
    " store.read.reader:Reader._window",
    "erase": "history.chat:Chat.delete history.conversations:Conversations.erase"
    f" history.conversations:Conversations.write history.append:Appender.write {_APPEND}",
    "erase from the tail": "relay.dispatcher:Dispatcher._write_back relay.lease:write_back"
    " event_log.acknowledge:acknowledge event_log.erasing:erase_delivered",
}


def definition(step: str) -> Any:
    module, _, name = step.partition(":")
    value: Any = import_module(f"letopis.{module}" if module.startswith("store.") else f"letopis.outbox.{module}")
    for part in name.split("."):
        value = getattr(value, part)
    return value


def named_in(node: ast.AST) -> Iterator[str]:
    """Yield the names that a function uses, but for those in its lambdas."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.Attribute):
            yield child.attr
        elif isinstance(child, ast.Name):
            yield child.id
        yield from named_in(child)


def lost(way: str) -> list[str]:
    """Return the steps of a way that do not name the next one."""
    steps = way.split()
    sources = [textwrap.dedent(inspect.getsource(inspect.unwrap(definition(step)))) for step in steps[:-1]]
    definition(steps[-1])  # exists
    following = [step.rpartition(":")[2].rpartition(".")[2] for step in steps[1:]]
    return [
        step
        for step, source, name in zip(steps, sources, following, strict=False)
        if name not in named_in(ast.parse(source))
    ]


@pytest.mark.parametrize("name", WAYS)
def test_each_step_names_the_next(name: str) -> None:
    assert lost(WAYS[name]) == []


def test_a_step_in_a_lambda_is_lost() -> None:
    assert lost("history.history:History.reply history.open_replies:Replies.reply") == ["history.history:History.reply"]
