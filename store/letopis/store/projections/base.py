"""Define projections, what a program derives from the log in tables of its own, and write the inline ones."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.store.database.dialects import Dialect
from letopis.store.database.fault_classification import translated
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.row_mapping import recorded_event
from letopis.store.database.schema import checkpoints, log_heads
from letopis.store.database.schema import events as log
from letopis.store.errors import ConfigurationError
from letopis.store.model.events import RecordedEvent
from letopis.store.rules.apply_plan import TableRow

logger = logging.getLogger("letopis.store.projections")

MAX_VERSION: Final = 2**31 - 1
MAX_NAME_LENGTH: Final = 64
EVENTS_PER_BATCH: Final = 250
"""Events that a projector applies in one transaction by default."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*")
_RESERVED_NAMES: Final = frozenset({"search", "letopis", "retention"})
RETENTION_PREFIX: Final = "retention."
"""Begins the names of the places up to which retention has read the log: they are no projections."""
TRANSIENT_CLASSES: Final = frozenset({FaultClass.UNAVAILABLE, FaultClass.CONFLICT, FaultClass.UNKNOWN_OUTCOME})
"""Faults of the database that pass, and that no projection is charged with."""


class Projection(ABC):
    """What a program derives from the events of the log, kept in tables of its own.

    An *inline* projection, given to ``ConversationStore(projections=...)``, is written in the transaction that records
    the events, so that it is never behind. A *catch-up* projection, given to :meth:`ConversationStore.projector`, reads
    the log in a transaction of its own, and the bot does not wait for it. Either way a checkpoint moves in the same
    transaction as what is written, so every event takes effect exactly once, whatever process is killed, and however
    many processes run it.

    :cvar name: dotted lower-case words, at most 64 characters.
    :cvar version: raised when the rules change; the new version reads the log from the beginning beside the older one.
        Have it write to tables of its own (``orders_v2``), or to rows that carry the version.
    """

    name: str
    version: int = 1

    @abstractmethod
    async def apply(self, connection: AsyncConnection, events: Sequence[RecordedEvent], *, replaying: bool) -> None:
        """Apply events by statements on ``connection``, whose transaction is open and must not be ended here.

        They come in the order of their log partition, without gaps, each once. An event that was redacted before it is
        read comes without its content (``digest`` is ``None``); a later redaction is announced by ``message.redacted``
        or ``conversation.deleted``, and a projection that copied content has to erase it then. An event that came too
        late carries ``letopis.superseded`` in its metadata and had no effect.

        For a side effect that has to happen exactly once, write a row to be worked on, unless ``replaying``.

        :param replaying: whether it was done before: by an older version of this projection, or before there was any.
        """

    async def effects(self, events: Sequence[RecordedEvent]) -> None:  # noqa: B027 - most projections have none
        """Do what is no statement: send, call, invalidate. For catch-up projections only; by default nothing.

        Called after the commit with the events that were not replayed, *at most once*: a process that dies between the
        commit and the end of this leaves them undone. An exception ends the step; the events are not passed again.
        """


def has_effects(projection: Projection) -> bool:
    """Return True if a projection does anything outside the database."""
    return type(projection).effects is not Projection.effects


def check_projection(projection: Projection) -> Projection:
    """Return ``projection`` if its name and version can identify its checkpoints."""
    if not isinstance(projection, Projection):
        raise ConfigurationError(f"a projection must be a Projection, not {type(projection).__name__}")
    name, version = getattr(projection, "name", None), projection.version
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or len(name) > MAX_NAME_LENGTH:
        raise ConfigurationError(
            f"{type(projection).__name__}.name must be dotted lower-case words of at most {MAX_NAME_LENGTH} characters"
        )
    if name.split(".")[0] in _RESERVED_NAMES:
        raise ConfigurationError(f"the projection name {name!r} is reserved for Letopis: take another one")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION:
        raise ConfigurationError(f"the version of the projection {name!r} must be a whole number from 1")
    return projection


def check_inline_projections(projections: Iterable[Projection]) -> tuple[Projection, ...]:
    """Return inline projections in the order in which every process takes their locks."""
    given: object = projections
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"projections must be a sequence of Projection, not {type(projections).__name__}")
    ordered = sorted(
        (check_projection(projection) for projection in projections),
        key=lambda projection: (projection.name, projection.version),
    )
    for projection, other in pairwise(ordered):
        if (projection.name, projection.version) == (other.name, other.version):
            raise ConfigurationError(
                f"version {projection.version} of the projection {projection.name!r} is given twice: drop one"
            )
    for projection in ordered:
        if has_effects(projection):
            raise ConfigurationError(
                f"the projection {projection.name!r} has effects: run it by projector(), not inline"
            )
    return tuple(ordered)


@contextmanager
def attributed_to(projection: Projection) -> Iterator[None]:
    """Turn an exception into a fault of this projection, unless it is a transient fault of the database."""
    try:
        with translated():
            yield
    except Exception as error:
        if isinstance(error, StoreFault) and error.fault_class in TRANSIENT_CLASSES:
            raise
        what = error.code if isinstance(error, StoreFault) else type(error).__name__
        subject = f"the projection {projection.name!r}, version {projection.version}, failed ({what})"
        reason = f"{subject}: fix its code or its tables"
        raise StoreFault(fault_class=FaultClass.UNCLASSIFIED, code="projection", reason=reason) from error


CheckpointKey = tuple[str, int, int]
"""Name, version and partition."""


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """How far one version of a projection has read one partition; mutable within one transaction."""

    name: str
    version: int
    partition: int
    position: int
    replay_to: int
    new: bool = False

    @classmethod
    def first(cls, key: CheckpointKey, *, replay_to: int) -> Self:
        """Return the checkpoint of a version that has read nothing yet."""
        name, version, partition = key
        return cls(name=name, version=version, partition=partition, position=0, replay_to=replay_to, new=True)

    def as_row(self, now: int) -> TableRow:
        return (self.name, self.version, self.partition, self.position, self.replay_to, now)


_READ: Final = (
    sa.select(checkpoints.c.name, checkpoints.c.version, sa.func.sum(checkpoints.c.position))
    .where(checkpoints.c.name.not_like(f"{RETENTION_PREFIX}%"))
    .group_by(checkpoints.c.name, checkpoints.c.version)
    .order_by(checkpoints.c.name, checkpoints.c.version)
)
_WRITTEN: Final = sa.select(sa.func.sum(log_heads.c.position))


async def read_lags(connection: AsyncConnection) -> dict[str, int]:
    """Return how many events the newest version of each projection, and each follower, has not read, by name."""
    read = (await connection.execute(_READ)).all()  # first: what is written meanwhile must not make it negative
    written = (await connection.execute(_WRITTEN)).scalar_one()
    return {name: int(written - position) for name, _, position in read}


class Checkpoints:
    """Reads, locks and moves checkpoints; its statements are built once."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        columns = (checkpoints.c[name] for name in ("name", "version", "partition", "position", "replay_to"))
        named = (
            sa.select(*columns)
            .where(dialect.among(checkpoints.c.name, "names"), dialect.among(checkpoints.c.partition, "partitions"))
            .order_by(checkpoints.c.name, checkpoints.c.version, checkpoints.c.partition)
        )
        self._unlocked: Any = named
        self._locked: Any = dialect.locked(named)
        self._free: Any = named if self._locked is named else named.with_for_update(skip_locked=True)

    async def read(
        self, connection: AsyncConnection, names: Collection[str], partitions: Collection[int], *, lock: bool = False
    ) -> list[Checkpoint]:
        """Return the checkpoints of all versions of some projections, on request locked in the transaction."""
        return await self._rows(connection, self._locked if lock else self._unlocked, names, partitions)

    async def find(
        self, connection: AsyncConnection, key: CheckpointKey, *, lock: bool = True, wait: bool = True
    ) -> tuple[Checkpoint | None, list[int]]:
        """Return the checkpoint of a version in a partition, and the positions of the other versions there."""
        # Without ``wait``, those that another transaction has locked are left out.
        name, version, partition = key
        statement = self._unlocked if not lock else self._locked if wait else self._free
        all_versions = await self._rows(connection, statement, [name], [partition])
        own = next((checkpoint for checkpoint in all_versions if checkpoint.version == version), None)
        return own, [checkpoint.position for checkpoint in all_versions if checkpoint.version != version]

    async def move(self, connection: AsyncConnection, moved: Collection[Checkpoint], *, now: int) -> None:
        # An IntegrityError says that another process has inserted one of the new ones.
        fresh = [checkpoint.as_row(now) for checkpoint in moved if checkpoint.new]
        await self._dialect.insert(connection, checkpoints, fresh)
        await self._dialect.overwrite(
            connection, checkpoints, [checkpoint.as_row(now) for checkpoint in moved if not checkpoint.new]
        )

    async def drop(self, connection: AsyncConnection, name: str, version: int) -> None:
        await connection.execute(
            sa.delete(checkpoints).where(checkpoints.c.name == name, checkpoints.c.version == version)
        )

    async def _rows(
        self, connection: AsyncConnection, statement: Any, names: Collection[str], partitions: Collection[int]
    ) -> list[Checkpoint]:
        rows = await connection.execute(statement, {"names": list(names), "partitions": list(partitions)})
        return [Checkpoint(**row._mapping) for row in rows]


_BEHIND: Final = (
    "the inline projection %s, version %d, is %d events behind and applies nothing: run its projector's catch_up() once"
)
_LOG_COLUMNS: Final = tuple(log.columns.keys())


class InlineProjections:
    """The inline projections of a store."""

    # Events are applied only where they follow its checkpoint directly. One that was added later, or left behind by a
    # process without it, waits until its projector has caught up to the head of the log, and makes no gap.
    def __init__(self, projections: Sequence[Projection], dialect: Dialect) -> None:
        self._projections = projections
        self._checkpoints = Checkpoints(dialect)
        self._warned: set[CheckpointKey] = set()

    async def apply(self, connection: AsyncConnection, recorded: Sequence[TableRow]) -> None:
        """Apply what was just recorded, while the transaction holds the counters of the log."""
        if not self._projections or not recorded:
            return
        events = sorted(
            (_event(row) for row in recorded), key=lambda event: (event.partition or 0, event.position or 0)
        )
        parts = {partition: list(part) for partition, part in groupby(events, key=lambda event: event.partition or 0)}
        names = sorted({projection.name for projection in self._projections})
        locked = await self._checkpoints.read(connection, names, list(parts), lock=True)
        known = {(checkpoint.name, checkpoint.version, checkpoint.partition): checkpoint for checkpoint in locked}
        moved = []
        for projection in self._projections:
            for partition, part in parts.items():
                before, last = (part[0].position or 0) - 1, part[-1].position or 0
                key = (projection.name, projection.version, partition)
                # External effects of another version are not repeated.
                others = (
                    checkpoint.position
                    for checkpoint in known.values()
                    if (checkpoint.name, checkpoint.partition) == (projection.name, partition)
                    and checkpoint.version != projection.version
                )
                done = max(others, default=0)
                checkpoint = known.setdefault(key, Checkpoint.first(key, replay_to=done or before))
                if checkpoint.position != before:
                    if key not in self._warned:
                        self._warned.add(key)
                        logger.warning(_BEHIND, *key[:2], before - checkpoint.position)
                    continue
                with attributed_to(projection):
                    await projection.apply(connection, part, replaying=done >= last)
                checkpoint.position, checkpoint.replay_to = last, max(checkpoint.replay_to, done)
                moved.append(checkpoint)
                self._warned.discard(key)
        await self._checkpoints.move(connection, moved, now=recorded[0][-1])


def _event(row: TableRow) -> RecordedEvent:
    """Return the event of a new row of the log, whose values are in the order of the columns."""
    values: dict[str, Any] = dict(zip(_LOG_COLUMNS, row, strict=True))
    if values.pop("salt") is None:
        values["digest"] = None
    return recorded_event(values)
