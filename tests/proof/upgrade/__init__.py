"""Upgrade and rollback: old code and new code on each other's tables, migrations cut off and raced for."""

from tests.proof.upgrade.part import prove

__all__ = ("prove",)
