"""Formats in which conversations come in and go out."""
