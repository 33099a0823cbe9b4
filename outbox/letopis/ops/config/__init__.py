"""Settings from flags, environment and `letopis.toml`."""
