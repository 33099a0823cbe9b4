"""Read old events as if they had been written today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Upcaster = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Takes the data of version *n* and returns the data of version *n + 1*; must not change its argument."""


class Upcasters:
    """A chain of rules, each keyed by the ``(type, schema_version)`` that it reads.

    Stored events do not change: upcasting happens on every read, so a rule stays for as long as there are old events.
    """

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[tuple[str, int], Upcaster] | None = None) -> None:
        self._rules = dict(rules or {})

    def with_rule(self, type_name: str, version: int, rule: Upcaster) -> Upcasters:
        """Return a new chain that also reads ``version`` of ``type_name``.

        :raises ValueError: there is a rule for it already.
        """
        if (type_name, version) in self._rules:
            raise ValueError(f"there is an upcaster for version {version} of {type_name} already")
        return Upcasters({**self._rules, (type_name, version): rule})

    def upcast(self, type_name: str, version: int, data: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """Return version and data after every rule that applies, one after the other."""
        while (rule := self._rules.get((type_name, version))) is not None:
            version, data = version + 1, rule(data)
        return version, data


NO_UPCASTERS = Upcasters()
"""Reads every event as it was recorded."""
