"""A plain model of a history, and the machine that holds the real one against it."""
