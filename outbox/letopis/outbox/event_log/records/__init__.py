"""Records in the outbox: their changes, lookups and rebuilds."""
