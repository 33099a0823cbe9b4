"""Pure decisions without I/O: fold, projection, apply plan, preconditions, context window, transcript."""
