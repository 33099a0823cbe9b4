"""The caller's own projections: inline and catch-up, with checkpoints."""
