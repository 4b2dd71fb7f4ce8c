"""What calls turn into before anybody acts on them: frozen records that a port stores or notes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from entitycelery.address import Address
from entitycelery.signal_token import SignalId
from entitycelery.signals import Outcome
from entitycelery.unique import UniqueRule


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a call and not to the handler: see `Call.options`."""

    key: str | None = None
    key_is_new: bool = False
    """Nobody else can have sent with this key, so nobody need look."""
    unique: UniqueRule | None = None
    unique_for_s: float | None = None
    task_id: str | None = None
    delay_s: float | None = None
    deliver_at: datetime | None = None
    expires_s: float | None = None
    expires_at: datetime | None = None
    """In the place of `expires_s`, where Celery is given an instant: the database compares it, not the sender."""
    timeout_s: float | None = None
    connection: Any = None


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one entity, checked and encoded; `args` is canonical JSON of the named arguments."""

    address: Address
    operation: str
    args: bytes
    options: CallOptions
    capacity: int | None = None


class Complete(msgspec.Struct, frozen=True):
    """One completion of a signal, checked and encoded."""

    signal: SignalId
    outcome: Outcome
