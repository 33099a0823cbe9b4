"""Cut the power at every moment of a bot's life; the disk holds all that was acknowledged."""
