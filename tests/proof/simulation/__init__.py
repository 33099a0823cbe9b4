"""Run the real outbox, relay and store in virtual time, where everything that can fail does, by a seed."""
