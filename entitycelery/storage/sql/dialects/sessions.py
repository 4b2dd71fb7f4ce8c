"""Whether a connection is a session: one process of the server, for as long as it is open.

Behind a transaction pooler it is not, and a lock of the session would stay with a process that works for others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg2
from sqlalchemy.engine import Engine

from entitycelery.exceptions import ConfigurationError
from entitycelery.storage.sql.statement import NO_SESSIONS, fetch

CONNECTIONS = 3
_ROUNDS = 8
_REFUSED = "unsupported startup parameter"


def check_sessions(engine: Engine) -> None:
    """Ask several connections several times which process of the server answers.

    No lock is taken for it: behind a pooler nobody could be sure to release it.

    Raises:
        ConfigurationError: They are no sessions.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(CONNECTIONS)]
        rounds = []
        for _ in range(_ROUNDS):
            # In any order: a pooler may hand out its connections in turn.
            answered = {
                number: int(fetch(connections[number], "SELECT pg_backend_pid()")[0][0])
                for number in random.sample(range(CONNECTIONS), CONNECTIONS)
            }
            rounds.append(answered)
    if not are_sessions(rounds):
        raise ConfigurationError(NO_SESSIONS)


def are_sessions(rounds: Sequence[Mapping[int, int]]) -> bool:
    """Whether each connection had a process of its own, and the same in every round."""
    first = rounds[0]
    return all(answered == first for answered in rounds) and len(set(first.values())) == len(first)


def connect(_dialect: Any, _record: Any, args: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
    """Connect, as an engine's `do_connect`.

    Raises:
        ConfigurationError: A pooler does not take the settings of our sessions.
    """
    try:
        return psycopg2.connect(*args, **arguments)
    except psycopg2.OperationalError as exc:
        if _REFUSED not in str(exc):
            raise
        raise ConfigurationError(
            "entity_database_url leads through a pooler that takes no settings of sessions: if it pools transactions, "
            'set entity_lock_mode = "rows" for all workers of the cluster; if it pools sessions, set its '
            "ignore_startup_parameters = options"
        ) from exc
