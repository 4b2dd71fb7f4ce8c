"""What the library tells of itself: spans, events and log records.

One place emits them all; exporters and tests listen with `listen`. Nobody listening costs next to nothing.
"""

from __future__ import annotations

from entitycelery.telemetry.records import JsonFormatter, TurnFields
from entitycelery.telemetry.spans import Listener, Span, happened, listen, span

__all__ = ["JsonFormatter", "Listener", "Span", "TurnFields", "happened", "listen", "span"]
