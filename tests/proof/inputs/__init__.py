"""Pass hostile input: it is stored unchanged or refused by name, and nothing else happens."""
