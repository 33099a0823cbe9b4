"""Reads: pages, point-in-time reads, lineage of forks, statistics."""
