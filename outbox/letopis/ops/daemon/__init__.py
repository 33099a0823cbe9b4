"""Run relays for any number of outboxes in one process, with health checks and metrics."""
