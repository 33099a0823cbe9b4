"""Reads that merge pending events over what the history store returned."""
