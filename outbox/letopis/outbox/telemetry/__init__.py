"""Telemetry: log formatters and delivery spans."""
