"""What calls turn into before anybody acts on them: frozen records that a port stores or notes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from entitycelery.address import Address


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a call and not to the handler: see `Call.options`."""

    key: str | None = None
    task_id: str | None = None
    delay_s: float | None = None
    deliver_at: datetime | None = None
    expires_s: float | None = None
    timeout_s: float | None = None
    connection: Any = None


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one entity, checked and encoded; `args` is canonical JSON of the named arguments."""

    address: Address
    operation: str
    args: bytes
    options: CallOptions
    capacity: int | None = None
