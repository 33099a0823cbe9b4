"""Fail over under load: clusters of real servers lose the node that is written to, and bots and relays go on."""
