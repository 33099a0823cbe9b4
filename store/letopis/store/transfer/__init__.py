"""Read and write the formats of exported conversations."""
