"""Kill processes at random, at every step of a run, and at each named moment."""
