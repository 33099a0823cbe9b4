"""The outbox file: opening, write gate, group-commit writer, reader, identity, limits, change watcher."""
