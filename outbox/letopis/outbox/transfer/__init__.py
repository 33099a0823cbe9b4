"""Import and export of conversations through the outbox."""
