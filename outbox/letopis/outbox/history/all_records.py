"""Find the records of all scopes, and name one scope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.history.records import Records
from letopis.store.errors import InvalidInput
from letopis.store.model.conversations import Page
from letopis.store.model.identifiers import Owner, owner_id
from letopis.store.model.records import Record, Scope, Tag

if TYPE_CHECKING:
    from letopis.outbox.history.sharing import SharedAccess


@at_home()
class AllRecords:
    """What frameworks keep beside the messages. ``history.records``; call it for the records of one scope.

    ::

        await history.records(conversation="chat-1").put(("state",), "step", {"at": 3})
    """

    def __init__(self, home: SharedAccess) -> None:
        self._home = home

    def __call__(
        self,
        scope: Scope | None = None,
        *,
        conversation: str | None = None,
        owner: Owner | None = None,
        space: str | None = None,
        new: bool = False,
    ) -> Records:
        """Return the records of a conversation, an owner or a space.

        :param scope: that of a record that was found, instead of a name.
        :param space: a name of your choice for records that belong to neither, for example an application's memory.
        :param new: you say that the scope is new. While the history store is unavailable, a record that the outbox does
            not know then does not exist, instead of raising ``StoreUnavailable``, so that a new conversation can begin.
            If it exists after all, it and the new ones are kept side by side, and conditions are decided on delivery.
        :raises InvalidInput: none or several are named, or the name cannot be one.
        """
        return Records(_scope_from(scope, conversation=conversation, owner=owner, space=space), self._home, new=new)

    async def find(
        self,
        tags: Mapping[str, Tag],
        *,
        end: str | None = None,
        reverse: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[Record]:
        """Return the records of all scopes that have all these tags, without their values, pending ones included.

        :param end: only records with lower keys.
        :param reverse: in the order of the keys, the highest first, instead of by scope and namespace.
        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: no tag is named, or an argument cannot be one.
        """
        return await self._home.parts.record_reads.find(tags, limit=limit, after=after, reverse=reverse, end=end)

    async def scopes(self, *, limit: int = 100, after: str | None = None) -> Page[Scope]:
        """Return the conversations, owners and spaces that have records, pending ones included, in a fixed order.

        What is about to be deleted may still be named: its list is empty.

        :param after: the ``next`` of the page before.
        :raises StoreUnavailable: the history store does not answer.
        :raises InvalidInput: an argument cannot be one.
        """
        return await self._home.parts.record_reads.scopes(limit=limit, after=after)


def _scope_from(scope: Scope | None, *, conversation: str | None, owner: Owner | None, space: str | None) -> Scope:
    """Return the one scope that is named, as ``History.records`` takes it."""
    if scope is not None and not isinstance(scope, Scope):
        raise InvalidInput("scope", f"must be the scope of a record, not {type(scope).__name__}")
    if sum(value is not None for value in (scope, conversation, owner, space)) != 1:
        raise InvalidInput("scope", "name one of conversation=, owner= and space=, or give the scope of a record")
    if scope is not None:
        return scope.check()
    if conversation is not None:
        return Scope.conversation(conversation)
    return Scope.space(space) if space is not None else Scope.owner(owner_id(owner) or "")
