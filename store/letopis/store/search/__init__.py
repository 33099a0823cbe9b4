"""Full-text search: the same words, index and results on all three databases."""
