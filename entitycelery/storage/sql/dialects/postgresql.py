"""PostgreSQL 15 to 18 through psycopg2: advisory locks, LISTEN/NOTIFY, one schema per cluster."""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from entitycelery.address import ShardId, lock_space
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.storage.port import ReplyWaiter
from entitycelery.storage.sql.dialects.base import Dialect, Locks, Role, column_of, parameters_of, parameters_replaced
from entitycelery.storage.sql.statement import Statement, fetch, mark_as_ours, run, transaction

_DIVISION_BY_ZERO = "22012"
_KINDS = {"text": "text", "int": "bigint", "float": "double precision", "bool": "boolean"}
_CASTS = {"int": "bigint", "float": "double precision", "bool": "boolean"}

# Dead peers are noticed within about 15 s, on this side and on the server's.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3}
_LONG_LIVED = (
    "-c idle_session_timeout=0 -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=3 -c tcp_keepalives_count=3"
)
# Statements are planned once, for any parameters, and by index only: a plan made while a table is empty must not scan
# it once it is full, and planning anew for each list of shards took longer than looking into them.
_PLAN_ONCE = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
_SERVER_SETTINGS = {
    "client": f"{_LONG_LIVED} {_PLAN_ONCE} -c statement_timeout={{timeout_ms}}",
    "drain": f"{_LONG_LIVED} {_PLAN_ONCE} -c lock_timeout=1000",
    "listen": _LONG_LIVED,
}
_PLAN_AS_USUAL = "SET LOCAL enable_seqscan = on; SET LOCAL plan_cache_mode = auto"


class PostgreSQL(Dialect):
    name = "postgresql"
    now = "clock_timestamp()"
    now_once = "(SELECT clock_timestamp())"
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    for_update = "FOR UPDATE"
    together = True
    shards_at_once = True
    instant_type = "timestamptz"
    script_now = "clock_timestamp()"
    check_constraints = ("SET CONSTRAINTS ALL IMMEDIATE",)
    begin_turn = f"{begin}; {_PLAN_AS_USUAL}; SET LOCAL lock_timeout = 0"
    # A join could be planned as a scan of the whole table, and a cached plan stays with that.
    states_of_ids = """unnest(CAST(:ids AS text[])) AS i(id) CROSS JOIN LATERAL
        (SELECT * FROM {state} WHERE type = :type AND entity_id = i.id LIMIT 1) AS s"""
    announce = "SELECT pg_notify(c, i) FROM unnest(CAST(:channels AS text[]), CAST(:replied AS text[])) AS u(c, i)"
    insert_certainly = """
        WITH stored AS ({insert} RETURNING 1)
        SELECT 1 / CASE WHEN (SELECT count(*) FROM stored) = 1 THEN 1 ELSE 0 END
    """
    # The division fails where something is missing, so that what follows in the same round trip is not committed.
    finish_batch = """
        WITH ended AS MATERIALIZED (
            SELECT * FROM json_to_recordset(CAST(:rows AS json))
                AS r(id text, rev bigint, status text, result text, failure text)
        ), gone AS (
            DELETE FROM {message} AS m USING ended AS r WHERE m.id = r.id AND m.rev = r.rev
            RETURNING m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, r.result, r.failure
        ), replied AS (
            INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at)
            SELECT id, fingerprint, type, entity_id, operation, status, CAST(result AS jsonb), CAST(failure AS jsonb),
                   clock_timestamp()
            FROM gone
        ), won AS (
            {write_state}
        )
        SELECT 1 / CASE WHEN (SELECT count(*) FROM gone) = :messages AND (SELECT count(*) FROM won) = :entities
                        THEN 1 ELSE 0 END
    """
    messages_are_gone = "(SELECT count(*) FROM gone) = :messages"

    def __init__(self, url: URL, cluster: str) -> None:
        super().__init__(url, cluster)
        self.schema = f"entity_{cluster}"
        self.script_head = (
            f"CREATE SCHEMA IF NOT EXISTS {self.schema};",
            f"SET search_path TO {self.schema};",
        )
        self.drop_schema = (f"DROP SCHEMA IF EXISTS {self.schema} CASCADE",)
        self.ring_channel = f"entity_{cluster}_ring"
        # A subquery, so that it is drawn once per statement and not once per row.
        self.drawn_fence = f"(SELECT nextval('{self.table('fence')}'))"
        self._relay: Connection | None = None
        _cooperate_with_gevent()

    def is_overtaken(self, exc: DBAPIError) -> bool:
        return getattr(exc.orig, "pgcode", None) == _DIVISION_BY_ZERO

    def table(self, name: str) -> str:
        return f"{self.schema}.{name}"

    def _statement(self, text: str) -> Statement:
        escaped = text.replace("%", "%%")
        styled = parameters_replaced(escaped, lambda parameter: f"%({parameter})s")
        if not text.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            return Statement(styled)
        names = parameters_of(text)
        name = f"ec_{blake2b(text.encode(), digest_size=8).hexdigest()}"
        numbered = parameters_replaced(escaped, lambda parameter: f"${names.index(parameter) + 1}")
        arguments = ", ".join(f"%({parameter})s" for parameter in names)
        return Statement(
            styled,
            name=name,
            prepare=f"PREPARE {name} AS {numbered}".replace("%%", "%"),
            execute=f"EXECUTE {name}({arguments})" if names else f"EXECUTE {name}",
        )

    def rowset(self, parameter: str, **columns: str) -> str:
        listed = ", ".join(f"{name} {_KINDS[kind]}" for name, kind in columns.items())
        return f"json_to_recordset(CAST(:{parameter} AS json)) AS r({listed})"

    def per_shard(self, select: Callable[[str], str]) -> str:
        return f"SELECT c.* FROM unnest(CAST(:shards AS integer[])) AS s(n) CROSS JOIN LATERAL ({select('s.n')}) AS c"

    def any_of(self, expression: str, parameter: str) -> str:
        return f"{expression} = ANY(:{parameter})"

    def values(self, values: Collection[Any]) -> Any:
        return list(values)

    def after(self, seconds: str) -> str:
        return f"clock_timestamp() + {seconds} * interval '1 second'"

    def from_epoch(self, epoch_s: str) -> str:
        return f"to_timestamp({epoch_s})"

    def to_epoch(self, instant: str) -> str:
        return f"CAST(extract(epoch FROM {instant}) AS double precision)"

    def json(self, text: str) -> str:
        return f"CAST({text} AS jsonb)"

    def json_text(self, column: str) -> str:
        return f"CAST({column} AS text)"

    def insert_message(self) -> str:
        # The inner query draws seq in the senders' order, the outer one inserts in the order of locks.
        return """
            INSERT INTO {message} (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint,
                                   nonce, sender, reply_to, due_at, expires_at)
            SELECT s.id, s.seq, s.shard_group, s.shard, s.type, s.entity_id, s.lock_key, s.operation,
                   CAST(s.args AS jsonb), s.fingerprint, :nonce, s.sender, s.reply_to,
                   coalesce(to_timestamp(s.deliver_at), clock_timestamp() + s.delay_s * interval '1 second'),
                   clock_timestamp() + s.expires_s * interval '1 second'
            FROM (SELECT r.*, nextval('{message_seq}') AS seq FROM {rows} OFFSET 0) AS s
            WHERE EXISTS (SELECT 1 FROM {meta} WHERE name = 'shards_per_group' AND value = :shards)
            ORDER BY s.id
            ON CONFLICT (id) DO NOTHING
        """

    def engine(self, role: Role, connections: int, timeout_s: float) -> Engine:
        options = _SERVER_SETTINGS[role].format(timeout_ms=int(timeout_s * 1000))
        engine = create_engine(
            self.url,
            isolation_level="AUTOCOMMIT",
            pool_size=min(5, connections),
            max_overflow=max(0, connections - 5),
            pool_timeout=timeout_s,
            pool_use_lifo=True,
            connect_args={
                **_KEEPALIVES,
                "tcp_user_timeout": 15_000,
                "connect_timeout": max(2, int(timeout_s)),
                "options": options,
                "application_name": f"entitycelery {self.cluster} {role}",
            },
        )
        # Our own connections only: a caller's may not live as long as what is prepared on it.
        event.listen(engine, "connect", lambda _driver, record: mark_as_ours(record.info))
        return engine

    def claim_scope(self, conn: Connection) -> AbstractContextManager[Any]:
        # Claims are locks of the session, not rows: no transaction is open while user code runs.
        return nullcontext()

    def locks(self, engine: Engine) -> Locks:
        return AdvisoryLocks(self)

    @contextmanager
    def waiter(self, engine: Callable[[], Engine]) -> Iterator[ReplyWaiter]:
        with engine().connect() as conn:
            try:
                waiter = ListeningWaiter(conn)
            except StoreUnavailable:
                # The server closed it while it lay in the pool, by a restart for example: a new one, once.
                conn.invalidate()
                waiter = ListeningWaiter(conn)
            yield waiter

    def check_caller(self, conn: Connection, *, keyed: bool) -> None:
        if conn.dialect.name != "postgresql":
            raise ConfigurationError(f"options(connection=...) is of {conn.dialect.name}, the store is PostgreSQL")
        if not keyed:
            return
        [(level,)] = fetch(conn, "SHOW transaction_isolation")
        if level not in ("read committed", "read uncommitted"):
            raise ConfigurationError(
                f"a send with a key needs READ COMMITTED, options(connection=...) is in {str(level).upper()}"
            )

    def interrupt(self, conn: Connection, own: Connection) -> None:
        # Anything said on `conn` itself would wait for the statement that runs there.
        driver: Any = conn.connection.driver_connection
        run(own, "SELECT pg_terminate_backend(%(pid)s, 1000)", {"pid": driver.info.backend_pid})
        conn.invalidate()
        conn.close()

    def after_caller_commit(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        # A notification inside the caller's transaction is delivered when it commits, to a runner, which rings.
        for shard in shards:
            run(conn, "SELECT pg_notify(%(c)s, %(s)s)", {"c": self.ring_channel, "s": str(shard)})

    def committed_shards(self, engine: Callable[[], Engine]) -> list[ShardId]:
        if self._relay is None or self._relay.invalidated or self._relay.closed:
            self._relay = engine().connect()
            run(self._relay, f"LISTEN {self.ring_channel}")
        driver: Any = self._relay.connection.driver_connection
        try:
            driver.poll()
        except psycopg2.Error as exc:
            self._relay.invalidate()
            raise StoreUnavailable(f"listening for commits: {exc}") from exc
        rung = {_shard(notify.payload) for notify in driver.notifies}
        driver.notifies.clear()
        return sorted(rung)

    @contextmanager
    def migration_scope(self, conn: Connection) -> Iterator[Connection]:
        with transaction(conn, self.begin):
            space = lock_space(self.cluster, "migration")
            run(conn, "SELECT pg_advisory_xact_lock(%(space)s, 0)", {"space": space})
            run(conn, f"CREATE SCHEMA IF NOT EXISTS {self.schema}")
            run(conn, f"SET LOCAL search_path TO {self.schema}")
            yield conn

    def view(self, name: str, type_name: str, columns: Mapping[str, str]) -> list[str]:
        selected = "".join(f", {_view_column(field, kind)}" for field, kind in columns.items())
        literal = type_name.replace("'", "''")
        return [
            f"DROP VIEW IF EXISTS {self.table(name)}",
            f"CREATE VIEW {self.table(name)} AS SELECT entity_id, version, updated_at{selected} "
            f"FROM {self.table('state')} WHERE type = '{literal}' AND state IS NOT NULL",
        ]


def _shard(written: str) -> ShardId:
    group, _, number = written.rpartition(".")
    return ShardId(group, int(number))


def _view_column(field: str, kind: str) -> str:
    literal, column = field.replace("'", "''"), column_of(field)
    if kind == "json":
        return f"state -> '{literal}' AS \"{column}\""
    value = f"state ->> '{literal}'"
    return f'CAST({value} AS {_CASTS[kind]}) AS "{column}"' if kind in _CASTS else f'{value} AS "{column}"'


class AdvisoryLocks(Locks):
    """Session-level advisory locks: no write, gone the moment the session ends.

    Claims are one 64-bit key each; attention is two integers, a disjoint space, shared.
    """

    def __init__(self, dialect: PostgreSQL) -> None:
        self._cluster = dialect.cluster

    @functools.lru_cache(maxsize=1000)  # noqa: B019 - lives as long as the store
    def _space(self, group: str) -> int:
        return lock_space(self._cluster, f"attention {group}")

    def _keys(self, shards: Sequence[ShardId]) -> dict[str, list[int]]:
        return {"g": [self._space(shard.group) for shard in shards], "n": [shard.number for shard in shards]}

    def attend(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, "SELECT pg_advisory_lock_shared(g, n) FROM unnest(%(g)s, %(n)s) AS u(g, n)", self._keys(shards))

    def forsake(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, "SELECT pg_advisory_unlock_shared(g, n) FROM unnest(%(g)s, %(n)s) AS u(g, n)", self._keys(shards))

    def attended(self, conn: Connection, shards: Sequence[ShardId]) -> set[ShardId]:
        # In autocommit the exclusive locks are gone when this statement ends. Refused: somebody will look.
        statement = (
            "SELECT n, pg_try_advisory_xact_lock(g, n) "
            "FROM unnest(%(g)s::int[], %(n)s::int[]) WITH ORDINALITY u(g, n, o) ORDER BY o"
        )
        rows = fetch(conn, statement, self._keys(shards))
        return {shard for shard, (_, granted) in zip(shards, rows, strict=True) if not granted}

    def question(self, shard: ShardId) -> tuple[str, Mapping[str, Any]]:
        statement = "SELECT NOT pg_try_advisory_xact_lock(%(space)s, %(number)s)"
        return statement, {"space": self._space(shard.group), "number": shard.number}

    def claim(self, conn: Connection, token: str, keys: Collection[int]) -> set[int]:
        statement = "SELECT k, pg_try_advisory_lock(k) FROM unnest(%(keys)s::bigint[]) k"
        return {key for key, granted in fetch(conn, statement, {"keys": list(keys)}) if granted}

    def release(self, conn: Connection, token: str, keys: Collection[int]) -> None:
        run(conn, "SELECT pg_advisory_unlock(k) FROM unnest(%(keys)s::bigint[]) k", {"keys": list(keys)})

    def release_all(self, conn: Connection, token: str) -> None:
        run(conn, "SELECT pg_advisory_unlock_all()")

    def abandon(self, token: str) -> None:
        """Nothing: the locks ended with the connection."""

    def is_claimed(self, conn: Connection, key: int) -> bool:
        # Read, not tried: a try would look like a claim to a drain.
        statement = """
            SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
                AND classid = CAST(%(high)s AS bigint) AND objid = CAST(%(low)s AS bigint)
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
        """
        return bool(fetch(conn, statement, {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF})[0][0])


class ListeningWaiter:
    """LISTENs on a channel of its own connection; behind it, polls with back-off from 50 ms to 1 s."""

    def __init__(self, conn: Connection) -> None:
        driver: Any = conn.connection.driver_connection
        self._conn = conn
        self._driver = driver
        info = conn.connection.info
        if "channel" not in info:
            info["channel"] = f"entity_reply_{os.urandom(8).hex()}"
            run(conn, f"LISTEN {info['channel']}")
        self.channel: str | None = info["channel"]
        self._next_poll_s = 0.05
        while select.select([self._driver], [], [], 0)[0]:
            # Old announcements; or the server's last words, behind which the end of the connection shows.
            self.take()

    def fileno(self) -> int:
        return int(self._driver.fileno())

    def take(self) -> list[str]:
        """The ids announced since the last look."""
        try:
            self._driver.poll()
        except psycopg2.Error as exc:
            self._conn.invalidate()
            raise StoreUnavailable(f"waiting for a reply: {str(exc).strip().partition(chr(10))[0]}") from exc
        ids = [notify.payload for notify in self._driver.notifies]
        self._driver.notifies.clear()
        return ids

    def wait(self, timeout_s: float) -> bool:
        pause_s = min(timeout_s, self._next_poll_s)
        self._next_poll_s = min(1.0, self._next_poll_s * 2)
        if not select.select([self._driver], [], [], pause_s)[0]:
            return False
        return bool(self.take())


def _cooperate_with_gevent() -> None:
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
