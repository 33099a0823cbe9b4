"""Check that a batch reached the right store and comes from no outdated copy of an outbox."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from letopis.store.database.dialects import Dialect
from letopis.store.database.schema import origins, store
from letopis.store.database.store_identity import check_identity, check_not_moved, missing_identity_fault
from letopis.store.errors import OriginSuperseded
from letopis.store.rules.apply_plan import Origin
from letopis.store.write.transaction import ApplyTransaction

_LAST_SEEN_INTERVAL_US: Final = 3_600_000_000
"""How often an origin's ``last_seen_at`` is written: it is one more locked row of an apply, and the same for all."""


class Registration:
    """Registers origins in a store; the statements are compiled once."""

    def __init__(self, dialect: Dialect) -> None:
        known = origins.c.origin_id == sa.bindparam("origin")
        # The store's own row comes with it, so that its check costs no statement of its own.
        self._found = (
            sa.select(store.c.store_id, store.c.moved_to, *origins.c)
            .select_from(store.outerjoin(origins, known))
            .where(store.c.id == 1)
        )
        self._locked = dialect.locked(sa.select(origins).where(known))

    async def register(self, transaction: ApplyTransaction) -> None:
        """Check the store's identity and make the origin known to it.

        :raises StoreFault: ``WRONG_STORE``: the origin is bound to another store, or the history was moved away.
        :raises OriginSuperseded: a newer copy of the outbox has delivered.
        """
        origin, now = transaction.origin, transaction.now
        connection, dialect = transaction.connection, transaction.dialect
        row = (await transaction.execute(self._found, origin=origin.origin_id)).first()
        if row is None:
            raise missing_identity_fault()
        check_identity(row.store_id, origin.store_id)
        check_not_moved(row.moved_to)
        if row.origin_id is None:
            await dialect.insert(connection, origins, [(origin.origin_id, origin.epoch, origin.name, now, now)])
            return
        # Read without a lock: a copy may take over a moment later in any case, and deliveries of both are distinguished
        # under the lane's lock.
        _check_epoch(origin, row)
        if (row.epoch, row.name) != (origin.epoch, origin.name) or abs(now - row.last_seen_at) > _LAST_SEEN_INTERVAL_US:
            row = (await transaction.execute(self._locked, origin=origin.origin_id)).one()
            _check_epoch(origin, row)
            seen = (origin.origin_id, origin.epoch, origin.name, row.first_seen_at, now)
            await dialect.overwrite(connection, origins, [seen])


def _check_epoch(origin: Origin, row: sa.Row[Any]) -> None:
    if row.epoch > origin.epoch:
        raise OriginSuperseded(origin_id=origin.origin_id, epoch=origin.epoch, current=row.epoch)
