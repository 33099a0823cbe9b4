"""Run the command with ``python -m letopis.outbox.cli``."""

from __future__ import annotations

from letopis.outbox.cli import main

main()
