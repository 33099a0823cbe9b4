"""Grow random trees of forks, rewinds, deletions and redactions; a message is readable exactly where it must be."""
