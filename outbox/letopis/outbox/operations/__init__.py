"""Let operators see the status of an outbox, repair stuck events and pause its relay."""
