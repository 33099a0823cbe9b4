"""Check that an owner's data stays theirs, and that secrets stay in."""
