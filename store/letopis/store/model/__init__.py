"""Values: identifiers, messages, events, conversations, and the codec that writes them."""
