"""Damage bits, pages and tails of files at rest; the damage is noticed, and what can be saved is."""
