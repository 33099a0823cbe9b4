"""Large content that the outbox file lacks, or has changed, is refused with the reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from letopis.store import ConversationStore, FaultClass, Message
from letopis.store.model.large_content import LARGE_BYTES
from letopis.store.testing.outbox import Outbox
from tests.support.sayings import raises_fault


@pytest.mark.parametrize(
    ("body", "fault_class", "code", "reason"),
    [
        (None, FaultClass.POISON, "content", "large content of the message is missing in the outbox file"),
        (b"other", FaultClass.POISON, "content", "large content of the message is not what was appended"),
        (b"", FaultClass.CONFLICT, "content-erased", "large content was erased"),
    ],
)
async def test_large_content_is_refused_unless_it_is_what_was_appended(
    body: bytes | None, fault_class: FaultClass, code: str, reason: str, tmp_path: Path
) -> None:
    outbox = Outbox()
    outbox.append("c", Message.user("x" * (LARGE_BYTES + 1)))
    outbox.lanes["c"] = [replace(event, contents=None) for event in outbox.lanes["c"]]
    outbox.origin = replace(outbox.origin, read_content=lambda conversation_id, name: body)
    async with ConversationStore.open(tmp_path / "history.db") as store:
        with raises_fault(fault_class, code, match=reason):
            await outbox.deliver(store)
