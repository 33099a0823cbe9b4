"""Replies being written: content, completion, and the lock that shows their writer is alive."""
