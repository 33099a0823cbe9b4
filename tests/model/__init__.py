"""Compare a history with a plain model of it."""
