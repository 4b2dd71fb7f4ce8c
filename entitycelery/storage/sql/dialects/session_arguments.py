"""With what arguments connections to PostgreSQL are made, by role: dead peers, time-outs, plans, names."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import psycopg2.extensions

from entitycelery.storage.sql.dialects.base import Role

# Dead peers are noticed within 15 s, on this side and on the server's. No keepalive is sent while something is not
# acknowledged, a notification for example: then the user time-out counts. With keepalives it counts too, at the next
# one, so it is shorter than the last.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3}
_LONG_LIVED = (
    "-c idle_session_timeout=0 -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3 "
    "-c tcp_user_timeout=12000"
)
# Statements are planned once, for any parameters, and by index only: a plan made while a table is empty must not scan
# it once it is full, and planning anew for each list of shards took longer than looking into them. A table without a
# fitting index makes such a plan look so expensive that the server would compile it, which takes longer than to run it.
# A bitmap of an index gives rows in no order: the newest version of a state, or the oldest mail, would be found past
# all that is dead, and the statistics of a table that is full of it have made that look cheaper.
_PLAN_ONCE = "-c enable_seqscan=off -c enable_bitmapscan=off -c plan_cache_mode=force_generic_plan -c jit=off"
SERVER_SETTINGS = {
    "client": f"{_LONG_LIVED} {_PLAN_ONCE} -c statement_timeout={{timeout_ms}}",
    "drain": f"{_LONG_LIVED} {_PLAN_ONCE} -c lock_timeout=1000",
    "listen": _LONG_LIVED,
    "lease": f"{_LONG_LIVED} -c lock_timeout=1000 -c statement_timeout={{timeout_ms}}",
    "singleton": f"{_LONG_LIVED} -c lock_timeout={{timeout_ms}} -c statement_timeout={{timeout_ms}}",
    # Waits for somebody's death, and ends when whoever waits does, which it would not notice otherwise.
    "watch": f"{_LONG_LIVED} -c client_connection_check_interval=1000",
}
_HOLDING: Collection[Role] = ("drain", "lease", "watch", "singleton")


def connect_args(cluster: str, role: Role, timeout_s: float, worker: str | None) -> dict[str, Any]:
    """psycopg2's arguments for a session of a role, of a worker if it is one's."""
    # Its worker's token is behind the name of every session that holds something: so all of them can be ended.
    of_worker = f" {worker}" if worker is not None and role in _HOLDING else ""
    return {
        **_KEEPALIVES,
        "tcp_user_timeout": 12_000,
        "connect_timeout": max(2, int(timeout_s)),
        "options": SERVER_SETTINGS[role].format(timeout_ms=int(timeout_s * 1000)),
        "application_name": f"entitycelery {cluster} {role}{of_worker}",
    }


def cooperate_with_gevent() -> None:
    """Have psycopg2 wait as gevent does, where gevent has patched the process."""
    # psycopg2 blocks the whole process inside libpq unless it is told how to wait.
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("select") or psycopg2.extensions.get_wait_callback():
        return
    from gevent.socket import wait_read, wait_write  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra

    def wait(conn: Any, timeout: float | None = None) -> None:  # psycopg2's own signature
        while True:
            state = conn.poll()
            if state == psycopg2.extensions.POLL_OK:
                return
            waits = {psycopg2.extensions.POLL_READ: wait_read, psycopg2.extensions.POLL_WRITE: wait_write}
            waits[state](conn.fileno(), timeout=timeout)

    psycopg2.extensions.set_wait_callback(wait)
