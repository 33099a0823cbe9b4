"""Move a whole history to another store while bots keep running."""
