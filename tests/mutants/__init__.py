"""Break one line at a time and see whether a test notices: a sample of mutants, rooms equally represented."""
