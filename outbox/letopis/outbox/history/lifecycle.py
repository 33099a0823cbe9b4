"""Open, watch and close the outbox of a history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from letopis.outbox.concurrency.home_loop import HomeLoop, at_home
from letopis.outbox.history.options import Options, Unconfirmed, keywords_of
from letopis.outbox.history.receipts import wait_until_drained
from letopis.store.model.identifiers import Owner, owner_id

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.opening import Parts
    from letopis.outbox.operations.status import Status
    from letopis.outbox.relay.relay import Relay
    from letopis.store.conversation_store import ConversationStore


@at_home(besides=("close",))
class Lifecycle:
    """What a history has of its outbox: opened on first use, shared with others on the same file, closed."""

    @keywords_of(Options)
    def __init__(self, options: Options) -> None:
        # With the first history rather than with its class: the relay, the readers and what else works in one.
        from letopis.outbox.history.opening import HistorySettings
        from letopis.outbox.history.sharing import SharedAccess

        self._home = SharedAccess(HistorySettings.of(options))

    async def __aenter__(self) -> Self:
        try:
            await self.prepare()
        except BaseException:  # a cancellation too, also one that comes when it is open
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def prepare(self) -> None:
        """Open the outbox now instead of on the first use. Idempotent.

        A failure leaves nothing open, and the next use tries again.

        :raises ConfigurationError: the file cannot be an outbox, or it is open in this process with other options.
        :raises OutboxUnavailable: the file cannot be used at present.
        :raises Closed: the history is closed, or was opened before this process was forked off.
        """

    async def close(self) -> None:
        """Close the history; nothing has to be delivered first. Idempotent; from any task, event loop and thread.

        The last history on a file closes its outbox: that cuts off open replies, and waits some seconds for the batch
        in flight; the rest stays on disk.

        :raises OutboxUnavailable: this task holds a transaction on the outbox, or the loop that the outbox is open in
            stands still.
        """
        await self._home.close()

    @property
    def outbox(self) -> OutboxFile:
        """The outbox file, once it is open; to be used in the event loop that it is open in."""
        return self._parts.outbox

    @property
    def store(self) -> ConversationStore:
        """The history store, once the outbox is open; to be used in the event loop that it is open in."""
        return self._parts.store

    @property
    def relay(self) -> Relay | None:
        """The relay of this process, once the outbox is open; ``None`` if another process delivers."""
        return self._parts.relay

    @property
    def _parts(self) -> Parts:
        return self._home.parts

    async def _find_home(self) -> HomeLoop:
        return await self._home.prepare()

    async def status(self) -> Status:
        """Return the state of the outbox and the relay, without contacting the history store.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        from letopis.outbox.operations.status import read_status

        return await self.outbox.read(lambda connection: read_status(connection, now_us=self.outbox.now_us()))

    async def drained(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until nothing is pending, at most ``timeout`` seconds, and return True if that is so.

        Returns False at once if all pending events wait for an operator. Without a relay, here or in another process,
        it waits for ever: give a timeout.

        :raises InvalidInput: ``timeout`` is not a number of seconds.
        """
        return await wait_until_drained(self.outbox, timeout)

    async def unconfirmed(self, *, owner: Owner | None = None) -> tuple[Unconfirmed, ...]:
        """Return the replies that were neither confirmed as sent nor as failed, the oldest first.

        These are the replies of this outbox, also those that are being sent at this moment, which are not
        ``abandoned``. ``sent`` or ``failed`` takes a reply off the list. After 30 days it leaves the list too, once the
        outbox does not hold the message any more.

        :raises InvalidInput: the owner is wrong.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        return await self._parts.replies.unconfirmed(owner=owner_id(owner))
