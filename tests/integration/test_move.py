"""A move may be cut off anywhere, given up, begun twice: one of the two stores at most ever takes deliveries."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from letopis.store import (
    ConfigurationError,
    ConversationDeleted,
    ConversationStarted,
    ConversationStore,
    FaultClass,
    LetopisError,
    Message,
    MessageRedacted,
    MoveFailed,
    StoreFault,
)
from letopis.store.database.store_identity import LogState
from letopis.store.ops.move import cancel_move, handover, move, mover
from letopis.store.rules.apply_plan import Origin
from letopis.store.testing.outbox import Outbox
from letopis.store.write.applier import Applier
from tests.support.moves import (
    dump,
    fill,
    hold_handover,
    identity,
    open_ones,
    run_sql,
    sound,
    states,
    takes_deliveries,
)
from tests.support.sayings import raises_fault, send
from tests.support.servers.store_pool import copy_sqlite_store
from tests.support.sqlite_rows import rows

New = Callable[[str], str]


class _Stopped(BaseException):
    """A process that ends here, as far as the move is concerned."""


STEPS: Final = ("claim_target", "close_source", "commit_handover", "open_target")
"""The transactions that decide; all others copy."""


def stopping(monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool) -> None:
    """Have a move end right before, or right after, one of its steps."""
    real: Callable[..., Awaitable[Any]] = getattr(mover, step)

    async def stopped(*given: Any, **named: Any) -> Any:
        if after:
            await real(*given, **named)
        raise _Stopped

    monkeypatch.setattr(mover, step, stopped)


async def cut_off(monkeypatch: pytest.MonkeyPatch, source: str, target: str, step: str, *, after: bool) -> None:
    """Begin a move that ends right before, or right after, one of its steps."""
    with monkeypatch.context() as patch:
        stopping(patch, step, after=after)
        with pytest.raises(_Stopped):
            await move(source, target)


@pytest.fixture(scope="module")
def history_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("move") / "history.db"
    asyncio.run(_filled(f"sqlite:///{path.as_posix()}"))
    return path


async def _filled(url: str) -> None:
    await fill(url, talks=2, each=10)


@pytest.fixture
def source(history_file: Path, new_store_url: New) -> str:
    url = new_store_url("sqlite")
    shutil.copy(history_file, url.removeprefix("sqlite:///"))
    return url


@pytest.fixture
def target(sqlite_store: Path, tmp_path: Path) -> str:
    """An empty store, as `letopis db upgrade` makes it."""
    return copy_sqlite_store(sqlite_store, tmp_path / "target.db")


async def give_up(source: str, target: str) -> None:
    """Cancel a move that was cut off; refused once the source was moved."""
    if (was := await states(source)) == {LogState.MOVED}:
        with pytest.raises(ConfigurationError, match="can no longer be cancelled"):
            await cancel_move(source)
        assert source not in await open_ones(source, target)
        return
    given_up = await cancel_move(source)
    assert (given_up is None) == (was == {LogState.OPEN})
    assert (await identity(source))[1] is None
    assert await open_ones(source) == [source]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_resumes_a_move(
    source: str, target: str, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it was given up, begins it anew."""
    await cut_off(monkeypatch, source, target, step, after=after)

    assert len(await open_ones(source, target)) <= 1
    if after:
        await give_up(source, target)
    before = await dump(source)
    done = await move(source, target)

    assert await dump(target) == before
    assert await open_ones(source, target) == [target]
    assert not await takes_deliveries(source) and await takes_deliveries(target)
    assert done.already == (step == "open_target" and after)
    assert await sound(target) == []


@pytest.mark.parametrize("step", ["commit_handover", "open_target"])
async def test_given_up_run_opens_nothing(source: str, target: str, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy is verified and the last steps are left; meanwhile the move is given up, and deliveries come."""
    reached, go = asyncio.Event(), asyncio.Event()
    real: Callable[..., Awaitable[Any]] = getattr(mover, step)

    async def held_back(*given: Any) -> Any:
        reached.set()
        await go.wait()
        return await real(*given)

    monkeypatch.setattr(mover, step, held_back)
    late = asyncio.create_task(move(source, target))
    await reached.wait()
    monkeypatch.setattr(mover, step, real)
    if step == "open_target":
        with pytest.raises(ConfigurationError, match="can no longer be cancelled"):
            await cancel_move(source)
        await move(source, target)  # another run continues, and ends it
        go.set()
        with pytest.raises(MoveFailed, match="taken over"):
            await late
    else:
        await cancel_move(source)
        assert await open_ones(source, target) == [source] and await takes_deliveries(source)
        go.set()
        with pytest.raises(MoveFailed, match="cancelled"):
            await late
        assert await open_ones(source, target) == [source]
        # Closed again, it is not taken for what that run had closed.
        await move(source, target)
    assert await open_ones(source, target) == [target]
    assert await sound(target) == []


async def test_given_up_run_stays_out(
    source: str, target: str, new_store_url: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = hold_handover(monkeypatch)
    late = asyncio.create_task(move(source, target))
    await reached.wait()
    await cancel_move(source)
    assert await takes_deliveries(source)
    await cut_off(monkeypatch, source, new_store_url("sqlite"), "commit_handover", after=False)
    go.set()

    with pytest.raises(MoveFailed, match="cancelled"):
        await late
    assert await states(source) == {LogState.CLOSING} and not await takes_deliveries(target)


async def test_of_two_runs_at_a_time_one_ends_the_move(source: str, target: str) -> None:
    ends = await asyncio.gather(*(move(source, target) for _ in range(3)), return_exceptions=True)

    assert all(not isinstance(end, BaseException) or isinstance(end, LetopisError) for end in ends), ends
    await move(source, target)
    assert await dump(target) == await dump(source)
    assert await open_ones(source, target) == [target]


async def test_known_events_move_no_lane_when_closed(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox of another identity delivers events that are there: the log would not change, but its lanes."""
    real = Applier.run_phases

    async def careful(self: Applier, *given: Any, **_: Any) -> Any:
        # As when the store is closed between a first attempt, which met the events, and the next.
        return await real(self, *given, optimistic=False)

    outbox = Outbox("c")
    outbox.append("talk 1", Message.user("once"))
    copied = outbox.copy()
    copied.origin = Origin(origin_id=Outbox().origin.origin_id, epoch=1, name="d")
    async with ConversationStore.open(source) as store:
        await outbox.deliver(store)
        await move(source, target)
        monkeypatch.setattr(Applier, "run_phases", careful)
        with pytest.raises(StoreFault, match="moved") as caught:
            await copied.deliver(store)
    assert caught.value.fault_class is FaultClass.WRONG_STORE
    assert await dump(source) == await dump(target)


async def test_unfinished_is_unused(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await cut_off(monkeypatch, source, target, "close_source", after=False)
    store = ConversationStore(target, migrate=False)
    for use in (store.prepare, lambda: store.messages("talk 1"), lambda: Outbox().deliver(store)):
        with raises_fault(FaultClass.WRONG_STORE, "arriving", match="is not finished"):
            await use()
    await move(source, target)
    assert (await store.messages("talk 1")).items  # the same object, on its own
    await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
async def test_flipped_byte_is_mended(
    source: str, kind: str, new_store_url: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what is compared is what the target holds, event by event, also what was copied long before."""
    target = new_store_url(kind)
    await cut_off(monkeypatch, source, target, "close_source", after=False)
    await run_sql(
        target,
        "UPDATE letopis_events SET data = REPLACE(data, 'message 1', 'message 7')",
        "UPDATE letopis_events SET salt = NULL WHERE conversation_id = 'big' AND version = 2",
        "DELETE FROM letopis_events WHERE conversation_id = 'big' AND version = 3",
        "UPDATE letopis_messages SET content_version = content_version + 1",
        "UPDATE letopis_owners SET next_number = 1",
        "DELETE FROM letopis_lanes WHERE conversation_id = 'talk 1'",
    )

    await move(source, target)

    assert await dump(target) == await dump(source)
    assert await sound(target) == []


async def test_uncompared_flipped_byte_would_arrive(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the control: the test above would see it."""
    await cut_off(monkeypatch, source, target, "close_source", after=False)
    await run_sql(target, "UPDATE letopis_events SET data = REPLACE(data, '\"user\"', '\"uSer\"')")

    async def blind(*given: Any, **named: Any) -> AsyncIterator[int]:
        for count in ():
            yield count

    monkeypatch.setattr(mover, "copy_rows", blind)
    await move(source, target)

    assert await dump(target) != await dump(source)
    assert await sound(target)


async def test_a_target_that_changes_what_is_written_is_not_opened(source: str, target: str) -> None:
    async with ConversationStore.open(target):
        pass
    await run_sql(
        target,
        "CREATE TRIGGER shout AFTER INSERT ON letopis_events WHEN NEW.type = 'message.appended' BEGIN"
        " UPDATE letopis_events SET occurred_at = 1 WHERE partition = NEW.partition AND position = NEW.position; END",
    )
    with pytest.raises(MoveFailed, match="trigger"):
        await move(source, target)
    assert await open_ones(source, target) == [source]


async def test_a_damaged_event_of_the_source_is_named_and_the_source_stays_open(source: str, target: str) -> None:
    await run_sql(source, "UPDATE letopis_events SET data = '{}' WHERE conversation_id = 'big' AND version = 2")
    with pytest.raises(MoveFailed, match="is not what was appended"):
        await move(source, target)
    assert await open_ones(source, target) == [source]


async def test_a_redaction_during_the_copy_arrives(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes an event that was copied and verified; so does a fork that lets its deleted parent go."""
    outbox = Outbox("c")
    outbox.append("secret", Message.user("the secret", id="s"))
    outbox.append("old", ConversationStarted(owner_id="1"), Message.user("kept for a fork"))
    outbox.append("young", ConversationStarted(forked_from={"conversation_id": "old", "version": 2}))
    async with ConversationStore.open(source) as store:
        await outbox.deliver(store)
        await send(store, outbox, "old", ConversationDeleted())
        real = handover.close_source

        async def close(*given: Any) -> Any:
            outbox.append("secret", MessageRedacted(message_id="s"))
            outbox.append("young", ConversationDeleted())
            with monkeypatch.context() as patch:
                # What an apply leaves for later is not done when the store is closed.
                patch.setattr(
                    "letopis.store.write.applier.Applier._erase_released", lambda self, marks: asyncio.sleep(0)
                )
                await outbox.deliver(store)
            return await real(*given)

        monkeypatch.setattr(mover, "close_source", close)
        await move(source, target)

    texts = repr(await dump(target))
    assert "the secret" not in texts and "kept for a fork" not in texts
    assert await dump(target) == await dump(source)
    assert await sound(target) == []


async def test_a_target_is_empty_or_of_this_move(source: str, target: str, new_store_url: New, tmp_path: Path) -> None:
    other = new_store_url("sqlite")
    await fill(other, talks=1, each=1)
    with pytest.raises(ConfigurationError, match="holds another history"):
        await move(source, other)
    with pytest.raises(ConfigurationError, match="same store"):
        await move(source, source)
    with pytest.raises(ConfigurationError, match="no such file"):
        await move(new_store_url("sqlite"), source)
    rows(source.removeprefix("sqlite:///"), f"VACUUM INTO '{tmp_path / 'copy.db'}'")
    with pytest.raises(ConfigurationError, match="or a copy of it"):
        await move(source, tmp_path / "copy.db")
    await move(source, target)
    with pytest.raises(ConfigurationError, match="name that store as the source"):
        await move(source, new_store_url("sqlite"))
    with pytest.raises(ConfigurationError, match="was moved away"):
        await move(target, source)
    back = new_store_url("sqlite")
    await move(target, back)
    assert await open_ones(source, target, back) == [back]


async def test_names_its_target(source: str, target: str, new_store_url: New, monkeypatch: pytest.MonkeyPatch) -> None:
    await cut_off(monkeypatch, source, target, "close_source", after=True)
    elsewhere = new_store_url("sqlite")
    with pytest.raises(ConfigurationError, match="is being moved to"):
        await move(source, elsewhere)
    with pytest.raises(StoreFault, match="is not finished"):
        await move(target, elsewhere)
    with pytest.raises(ConfigurationError, match="name its source"):
        await cancel_move(target)
    other = new_store_url("sqlite")
    await fill(other, talks=1, each=1)
    with pytest.raises(ConfigurationError, match="part of another history"):
        await move(other, target)


async def test_a_target_that_lost_the_history_is_not_filled_again(source: str, target: str) -> None:
    await move(source, target)
    path = Path(target.removeprefix("sqlite:///"))
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        name.unlink(missing_ok=True)
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        await move(source, target)
