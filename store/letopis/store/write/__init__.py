"""Writes: apply one batch in one transaction, and redact stored content."""
