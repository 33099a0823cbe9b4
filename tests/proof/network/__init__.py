"""Break what lies between a relay and its store, then the servers themselves."""
