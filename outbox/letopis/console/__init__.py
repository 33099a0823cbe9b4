"""Show a history in the browser: run ``letopis console``, or mount :func:`app` in your own web service."""

from __future__ import annotations

from letopis.console.application import app

__all__ = ("app",)
