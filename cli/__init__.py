"""The command line: `entitycelery ...`, and the same commands as `celery -A app entity ...`.

Uses the public API only. Importing it is cheap: the modules of the commands are loaded when they run.
"""

from __future__ import annotations

from .group import main

__all__ = ["main"]
