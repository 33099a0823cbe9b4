"""Recover an outbox from a damaged file."""
