"""Decide, without I/O, when to retry, when the store is unavailable, and what a fault is attributed to."""
