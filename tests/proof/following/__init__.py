"""Follow the log of a store in a process that is killed, while others write."""
