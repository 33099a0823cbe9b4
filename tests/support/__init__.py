"""Share what the tests of several folders need: servers, peers, relays, daemons, values."""
