"""Retention of content, continuity of the log, and pending tasks of a history store."""
