"""Erase at random, with kills, copies, restores and moves: what is erased is gone everywhere, and nothing else is."""
