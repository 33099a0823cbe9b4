"""Compare what a dry run of retention names with what a relay then takes, and both with the rules."""
