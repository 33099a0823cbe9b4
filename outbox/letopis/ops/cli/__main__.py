"""Run the command with ``python -m letopis.ops.cli``."""

from __future__ import annotations

from letopis.ops.cli import main

main()
