"""Run bots and a daemon for long under faults that come and go; what they use has to stay flat."""
