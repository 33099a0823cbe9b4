"""Check what a bot and its relay need: the machine, the configuration, the outbox and the store."""
