"""List the codes of the fault table that look like the store's own trouble, for each server."""

from __future__ import annotations

from typing import Final

from letopis.store.database.fault_rules import BY_MARIADB_NUMBER, BY_SQLSTATE
from letopis.store.database.faults import FaultClass

OUTAGE_LIKE: Final = (FaultClass.UNAVAILABLE, FaultClass.MISCONFIGURED, FaultClass.UNKNOWN_OUTCOME)


def outage_like(kind: str) -> list[tuple[FaultClass, str]]:
    """Return class and code of each of the table that looks like an outage; a class of SQLSTATEs stands for one."""
    rules = (
        BY_SQLSTATE.items() if kind == "postgresql" else ((str(code), rule) for code, rule in BY_MARIADB_NUMBER.items())
    )
    return [
        (rule.fault_class, f"{code}000" if len(code) == 2 else code)
        for code, rule in rules
        if rule.fault_class in OUTAGE_LIKE
    ]
