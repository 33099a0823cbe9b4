"""The local event log: tables, and the statements that append, deliver, acknowledge and prune."""
