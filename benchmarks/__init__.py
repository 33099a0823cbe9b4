"""Measure Letopis, its peers and the limits of disk and database, side by side in one run."""
