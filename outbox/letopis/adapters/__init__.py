"""Connect Letopis to the formats of others; imported explicitly, one module for each."""
