"""Set, freeze and suspend clocks while the history store is unavailable."""
