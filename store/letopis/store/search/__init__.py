"""Search: find messages by their words, the same on all three databases."""
