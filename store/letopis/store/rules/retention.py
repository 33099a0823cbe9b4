"""Decide by rules how long the content of a conversation stays in the history store, without I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Final

import orjson

from letopis.store.errors import InvalidInput
from letopis.store.model.event_types import PINNED
from letopis.store.model.identifiers import check_identifier, check_number

SECONDS_PER_DAY: Final = 86_400
MAX_DAYS: Final = 20_000
MAX_RULES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """The limits for the conversations of one owner, or with one tag. Content leaves when any limit says so.

    :ivar owner: the id of the owner; give it or ``tag``.
    :ivar max_age_days: days since the history store recorded an event, after which its content leaves.
    :ivar max_messages: messages of a conversation that keep their content, the newest; inherited ones do not count.
    :ivar archived_max_age_days: days since the store recorded that a conversation was archived, after which the content
        from before leaves.
    :ivar checkpoints_last: checkpoints of LangGraph that each namespace of a thread keeps, the newest.
    :ivar checkpoints_max_age_days: days since a checkpoint was put, after which it leaves unless it is the newest.
    """

    owner: str | None = None
    tag: str | None = None
    max_age_days: float | None = None
    max_messages: int | None = None
    archived_max_age_days: float | None = None
    checkpoints_last: int | None = None
    checkpoints_max_age_days: float | None = None

    def __post_init__(self) -> None:
        for name in ("owner", "tag"):
            if getattr(self, name) is not None:
                check_identifier(getattr(self, name), name)
        for name in ("max_age_days", "archived_max_age_days", "checkpoints_max_age_days"):
            if (days := getattr(self, name)) is not None:
                check_number(days, name)
                if not 0 < days <= MAX_DAYS:
                    raise InvalidInput(name, f"must be more than 0 and at most {MAX_DAYS} days")
        for name in ("max_messages", "checkpoints_last"):
            if (count := getattr(self, name)) is not None:
                check_number(count, name, whole=True)
                if count < 1:
                    raise InvalidInput(name, "must be at least 1")

    @property
    def name(self) -> str:
        """How the event that takes content away, and a dry run, name it."""
        if self.owner is not None:
            return f"owner {self.owner}"
        return "default" if self.tag is None else f"tag {self.tag}"

    @property
    def max_age(self) -> int | None:
        """The age in whole seconds, at least 1; ``None`` for no limit."""
        return _seconds(self.max_age_days)

    @property
    def archived_max_age(self) -> int | None:
        """As :attr:`max_age`, of archived conversations."""
        return _seconds(self.archived_max_age_days)

    @property
    def checkpoints_max_age(self) -> int | None:
        """As :attr:`max_age`, of checkpoints."""
        return _seconds(self.checkpoints_max_age_days)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRetention:
    """How long the content of conversations, and LangGraph's checkpoints, stay in the history store.

    The first of ``rules`` that matches a conversation counts, alone; the other values are for conversations that none
    matches. A rule without a limit keeps everything. A conversation with the tag ``pinned`` keeps everything, whatever
    the rules say. Erasure by hand is not affected.

    :ivar rules: in order, each for an owner or a tag.
    """

    max_age_days: float | None = None
    max_messages: int | None = None
    archived_max_age_days: float | None = None
    checkpoints_last: int | None = None
    checkpoints_max_age_days: float | None = None
    rules: tuple[RetentionRule, ...] = ()

    def __post_init__(self) -> None:
        _ = self.default
        object.__setattr__(self, "rules", tuple(self.rules))
        if len(self.rules) > MAX_RULES:
            raise InvalidInput("rules", f"must be at most {MAX_RULES}")
        for rule in self.rules:
            if not isinstance(rule, RetentionRule):
                raise InvalidInput("rules", f"must be RetentionRule(...), not {type(rule).__name__}")
            if (rule.owner is None) == (rule.tag is None):
                raise InvalidInput("rules", "must each name an owner or a tag, and not both")

    @property
    def default(self) -> RetentionRule:
        """The rule for conversations that no other rule matches."""
        return RetentionRule(
            max_age_days=self.max_age_days,
            max_messages=self.max_messages,
            archived_max_age_days=self.archived_max_age_days,
            checkpoints_last=self.checkpoints_last,
            checkpoints_max_age_days=self.checkpoints_max_age_days,
        )

    def rule_for(self, owner: str | None, tags: Collection[str]) -> RetentionRule | None:
        """Return the rule for a conversation; ``None`` if it is pinned."""
        if PINNED in tags:
            return None
        matching = (rule for rule in self.rules if (rule.owner == owner if rule.tag is None else rule.tag in tags))
        return next(matching, self.default)

    @property
    def ages(self) -> tuple[int, ...]:
        """The seconds after which an event may become due, ascending; 0 is when it is recorded."""
        rules = (*self.rules, self.default)
        given = {age for rule in rules for age in (rule.max_age, rule.archived_max_age) if age is not None}
        return tuple(sorted({0} | given))

    @property
    def least_age(self) -> int | None:
        """The shortest ``max_age`` of any rule, in seconds; ``None`` if no rule has one."""
        return min((rule.max_age for rule in (*self.rules, self.default) if rule.max_age is not None), default=None)

    @property
    def limits_checkpoints(self) -> bool:
        """Whether a rule limits checkpoints."""
        limits = ((rule.checkpoints_last, rule.checkpoints_max_age_days) for rule in (*self.rules, self.default))
        return any(limit != (None, None) for limit in limits)

    @property
    def fingerprint(self) -> str:
        """A name for these rules: others look at the log from its beginning."""
        return hashlib.sha256(orjson.dumps(asdict(self))).hexdigest()[:16]


def _seconds(days: float | None) -> int | None:
    return None if days is None else max(1, int(days * SECONDS_PER_DAY))
