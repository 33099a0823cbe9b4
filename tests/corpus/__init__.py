"""Corpora: hostile values, as data."""
