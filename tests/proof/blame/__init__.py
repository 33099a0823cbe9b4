"""Prove whose fault it is: events that fail like an outage, and stores that refuse every conversation."""
