"""Readings: what the events of a delivery say, read before the transaction that records them begins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from letopis.store.errors import InvalidInput
from letopis.store.faults import FaultClass, StoreFault
from letopis.store.plan import Delivery, LaneBatch
from letopis.store.projection import Interpreted, interpret
from letopis.store.upcasters import Upcasters

AT_ONCE: Final = 50
"""Events that are read between two turns of the loop: about half a millisecond."""


class Readings:
    """The events of one delivery, read.

    It is half of an apply's work in Python, and needs no lock. So it is done first, while another apply waits for the
    database; and in small parts, so that nothing else has to wait for it.
    """

    def __init__(self, upcasters: Upcasters) -> None:
        self._upcasters = upcasters
        self._found: dict[int, Interpreted] = {}

    async def read(self, batch: Sequence[LaneBatch]) -> None:
        """Read ahead. What cannot be read is left: perhaps nobody needs it."""
        read = 0
        for lane in batch:
            for start in range(0, len(lane.deliveries), AT_ONCE):
                part = lane.deliveries[start : start + AT_ONCE]
                try:
                    found = interpret(part, self._upcasters)
                except InvalidInput:
                    continue
                self._found.update(zip(map(id, part), found, strict=True))
                read += len(part)
                if read >= AT_ONCE:
                    read = 0
                    await asyncio.sleep(0)

    def of(self, deliveries: Sequence[Delivery]) -> tuple[Interpreted, ...]:
        """Return what events of the delivery say.

        :raises StoreFault: ``POISON``: one cannot be applied as it is.
        """
        found = tuple(read for one in deliveries if (read := self._found.get(id(one))) is not None)
        if len(found) == len(deliveries):
            return found
        try:
            return interpret(deliveries, self._upcasters)  # one could not be read, and here says why
        except InvalidInput as error:
            raise StoreFault(fault_class=FaultClass.POISON, code="invalid", reason=str(error)) from error
