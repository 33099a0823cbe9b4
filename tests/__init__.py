"""The tests of Letopis; run them with pytest from the root of the project."""
