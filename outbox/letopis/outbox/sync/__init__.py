"""The synchronous API and the event-loop thread behind it."""
