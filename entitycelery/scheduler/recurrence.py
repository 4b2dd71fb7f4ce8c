"""When a schedule fires: the kinds of recurrence, and how they are written down."""

from __future__ import annotations

import msgspec

from entitycelery.codec import DECODING_ERRORS, said, to_canonical_json
from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.cron import Cron
from entitycelery.scheduler.every import Every
from entitycelery.scheduler.once import Once
from entitycelery.scheduler.solar import Solar
from entitycelery.scheduler.tick import MICROSECOND, Tick

__all__ = ["Cron", "Every", "Once", "Recurrence", "Solar", "Tick", "decode", "encode", "has"]

Recurrence = Cron | Every | Once | Solar

_decoder: msgspec.json.Decoder[Recurrence] = msgspec.json.Decoder(Cron | Every | Once | Solar)


def encode(recurrence: Recurrence) -> bytes:
    """The recurrence as JSON: equal ones give equal bytes."""
    return to_canonical_json(recurrence, "a recurrence")


def decode(data: bytes | str) -> Recurrence:
    """The recurrence of a JSON text. Not checked: see `check`.

    Raises:
        ConfigurationError: The text is no recurrence that this version knows.
    """
    try:
        return _decoder.decode(data)
    except DECODING_ERRORS as exc:
        raise ConfigurationError(f"this is no recurrence: {said(exc)}") from exc


def has(recurrence: Recurrence, tick: Tick) -> bool:
    """Whether a tick is one of the recurrence as it is read today: releases of croniter may differ in that."""
    found = recurrence.first(tick.at - MICROSECOND)
    while found is not None and found.at == tick.at:
        if found.nominal == tick.nominal:
            return True
        found = recurrence.following(found)
    return False
