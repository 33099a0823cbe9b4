"""Change the path of a conversation: rewind, fork, replace."""
