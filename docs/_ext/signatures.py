"""Show in signatures the values of defaults, not the private names that the code gives them, and all keywords."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from letopis.outbox.history.options import AppendOptions
from letopis.store.model.messages import MessageFields

_NAMED = re.compile(r"(?<== )(_\w+(?:\.\w+)*|[A-Z][A-Z_]+)(?=[,)])|(?<==)(_\w+(?:\.\w+)*|[A-Z][A-Z_]+)(?=[,)])")
_KEYWORDS = re.compile(r"\*\*\w+: [^,)]*(AppendOptions|MessageFields)\]")
_MISSING = object()


def value_of(name: str, names: dict[str, Any]) -> Any:
    """Return what a dotted name means in a module."""
    first, *rest = name.split(".")
    found = names.get(first, _MISSING)
    for one in rest:
        found = getattr(found, one, _MISSING)
    return found


def shown(value: Any) -> str:
    """Return a value as a reader would write it."""
    if isinstance(value, bool | str | float | None):
        return repr(value)
    if isinstance(value, int):
        return f"{value:_}"
    kind = type(value)
    try:
        if value == kind():
            return f"{kind.__name__}()"
    except Exception:  # noqa: S110  # a type without a default: shown as left out
        pass
    return "..."


def show_values(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Replace named defaults in a signature; public names, which have a page, stay."""
    if signature is None:
        return signature, returns
    function = inspect.unwrap(obj.__init__ if inspect.isclass(obj) else getattr(obj, "__func__", obj))
    names = getattr(function, "__globals__", {})
    public = app.config.signature_public

    def replaced(match: re.Match[str]) -> str:
        found = match[1] or match[2]
        value = value_of(found, names)
        return found if found in public or value is _MISSING else shown(value)

    def listed(match: re.Match[str]) -> str:
        keywords = (AppendOptions if match[1] == "AppendOptions" else MessageFields).__annotations__
        return ", ".join(f"{keyword}=None" for keyword in keywords)

    return _NAMED.sub(replaced, _KEYWORDS.sub(listed, signature)), returns


def setup(app: Sphinx) -> ExtensionMetadata:
    """Change signatures when autodoc has made them."""
    app.add_config_value("signature_public", (), "env", (tuple, list, set, frozenset))
    app.connect("autodoc-process-signature", show_values)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
