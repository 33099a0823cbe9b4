"""What operators and auditors use: the command, the daemon, checks, repairs and transfers."""
