"""`python -m entitycelery.cli`: the console script where it is not on the path."""

from __future__ import annotations

from .group import main

main()
