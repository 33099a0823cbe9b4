"""Show a history in the browser: ``letopis console``, or :func:`app` mounted in a web service of one's own."""

from __future__ import annotations

from letopis.console.application import app

__all__ = ("app",)
