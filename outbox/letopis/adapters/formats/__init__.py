"""Convert messages to and from the formats of model providers, as plain JSON values.

One module a provider, with the same two functions: ``to_messages(items)`` and ``from_messages(messages)``. No SDK is
imported.
"""
