"""Every reader of words goes through the rule of sight, and every column of the store that can hold them is erased."""

import ast
import re
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from letopis.store.database.schema import metadata
from letopis.store.write.erasing import HOLDERS
from tests.support.paths import ROOT

STORE: Final = ROOT / "store/letopis/store"
OUTBOX: Final = ROOT / "outbox/letopis"

# --- readers --------------------------------------------------------------------------------------------------------

WORDS: Final = re.compile(
    r"events\.c\.data|select\(\s*events\b(?!\.)|\be\.c\.data|event_columns\(|message_columns\(|messages_select\("
    r"|(?<![.\w])(?<!def )whole\(|\bpast\.messages|lineage\.messages|lineage\.as_of|rows_after\("
    r"|merge_messages\(|merge_events\("
)
"""What reads words: events with their data, rows of messages, what a store or a file returns of them."""
SIGHT: Final = {
    # They read for those who read a conversation, or through a fork.
    "read/statements.py": "event_columns(events, read_in=conversations)",
    "read/point_in_time.py": "sight.event(event)",
    "read/lineage.py": ".sight.page(page)",
    "read/statistics.py": "message_columns(messages)",
    "search/documents.py": "is_shown(messages)",
    "search/finder.py": "is_shown(messages)",
    "runtime.py": "lineage.as_of(",
    "history/read.py": "Sight.of(now).page(page)",
    "history/find_message.py": "merge_messages(",
    "pending_reads/merge.py": "Sight.of(conversation, pending.redactions).event",
    "pending_reads/lineage.py": "sight.page(page)",
    "pending_reads/pending_slice.py": "read_slice",
    "pending_reads/pending_search.py": "Fold(",
}
"""The readers, by module, and where each goes through the rule: the row of a message, the condition, or a fold."""
OTHERS: Final = {
    # They define the rule or what it is made of, and write, erase, check or copy: nothing of it is shown.
    *("read/task_marks.py", "read/descendants.py", "write/loading.py", "write/contents.py", "write/erasing.py"),
    *("ops/rebuild.py", "ops/anchors.py", "ops/receipts.py", "ops/erasure_causes.py"),
    *("ops/verify.py", "ops/record_problems.py"),
    "store_log.py",  # of the console: figures alone
}


def modules() -> dict[str, str]:
    """Return the sources of both packages without docstrings, by the end of their paths."""
    found = {}
    for root in (STORE, OUTBOX / "outbox", OUTBOX / "console"):
        for path in sorted(root.rglob("*.py")):
            name = str(path.relative_to(root))
            if not name.startswith(("testing/", "event_log/", "transfer/", "diagnostics/")):
                found[name] = without_docstrings(path)
    return found


def without_docstrings(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ""
    return ast.unparse(tree)


def test_every_reader_goes_through_the_rule_of_sight() -> None:
    sources = modules()
    readers = {name for name, source in sources.items() if WORDS.search(source)}
    assert readers - OTHERS == set(SIGHT), "a new reader says where it goes through the rule"
    assert {name for name, rule in SIGHT.items() if rule not in sources[name]} == set()
    assert readers >= OTHERS


# --- holders --------------------------------------------------------------------------------------------------------

NAMES: Final = {
    # What identifies, counts or sorts; none of it is said by anybody.
    *(
        "conversation_id",
        "message_id",
        "event_id",
        "erasure_id",
        "origin_id",
        "owner_id",
        "active_conversation_id",
        "author",
    ),
    *("forked_from_id", "forked_from_event", "inherited_to", "activated_by", "moved_to", "store_id", "subject"),
    *("record_id", "scope", "namespace", "record_key", "revision", "media", "digest", "salt", "name", "positions"),
    *("type", "kind", "how", "role", "state", "requested_by"),
}


def test_every_column_that_can_hold_words_has_a_holder() -> None:
    held = {column for holder in HOLDERS for column in holder.columns}
    words = {
        column
        for table in metadata.sorted_tables
        for column in table.columns
        if not isinstance(column.type, sa.Integer | sa.BigInteger | sa.SmallInteger) and column.name not in NAMES
    }
    assert {str(column) for column in words} == {str(column) for column in held}
