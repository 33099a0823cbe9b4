"""What operators and auditors do with a history store: verify, rebuild, anchor and move it."""
