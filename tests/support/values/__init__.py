"""Hostile values: what a caller could hand over on purpose or by mistake."""
