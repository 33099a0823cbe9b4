"""Convert messages to and from the formats of model providers and front ends, as plain JSON values.

One module per format, with the same two functions: ``to_messages(items)`` and ``from_messages(messages)``. No SDK is
imported.
"""

from letopis.adapters.formats._native import to_message as to_message
from letopis.adapters.formats._native import with_own_items as with_own_items
from letopis.adapters.formats._readable import readable as readable
from letopis.adapters.formats._reading import objects as objects
from letopis.adapters.formats._threads import thread_page as thread_page
