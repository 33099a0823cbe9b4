"""Upgrade and rollback: old code and new code on each other's tables, migrations cut off and raced for."""
