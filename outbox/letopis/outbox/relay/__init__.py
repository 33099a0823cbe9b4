"""Deliver the events of an outbox to its history store."""
