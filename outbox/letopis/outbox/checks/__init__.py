"""Checks: what ``letopis doctor`` looks at, one room a subject; each finds, none changes anything."""
