"""Names of parameters: the same in every process that collects the tests, since several share them out."""

from __future__ import annotations

import re

_PLACE = re.compile(r" at 0x[0-9a-f]+")


def shown(value: object) -> str:
    """A value as ASCII, without where in memory it lies."""
    return _PLACE.sub("", ascii(value))
