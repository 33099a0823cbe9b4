"""Compare what a read returns with what had been acknowledged before it began."""
