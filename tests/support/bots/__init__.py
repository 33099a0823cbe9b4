"""Bots on the frameworks that there are adapters for, each on Letopis and on a backend of the framework itself."""
