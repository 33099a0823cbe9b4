"""Import of conversations through the outbox."""
