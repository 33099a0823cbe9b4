"""Adapters for other frameworks and formats, one module each; imported explicitly."""
