"""`History`, which a bot embeds: append, read, fork, rewind, transactions, receipts, replies."""
