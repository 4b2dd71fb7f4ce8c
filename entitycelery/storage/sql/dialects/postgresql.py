"""PostgreSQL 15 to 18 through psycopg2: advisory locks, LISTEN/NOTIFY, one schema per cluster."""

from __future__ import annotations

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
from entitycelery.storage.sql.dialects.advisory import AdvisoryLocks
from entitycelery.storage.sql.dialects.base import Dialect, Locks, Role, column_of, parameters_of, parameters_replaced
from entitycelery.storage.sql.dialects.listening import ListeningWaiter
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
# it once it is full, and planning anew for each list of shards took longer than looking into them. A table without a
# fitting index makes such a plan look so expensive that the server would compile it, which takes longer than to run it.
_PLAN_ONCE = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan -c jit=off"
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
    keeps_what_is_dead = True
    instant_type = "timestamptz"
    script_now = "clock_timestamp()"
    for_users_sql = f"{_PLAN_AS_USUAL}; SET LOCAL lock_timeout = 0"
    begin_report = f"{begin} READ ONLY; {_PLAN_AS_USUAL}; SET LOCAL statement_timeout = 0"
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
        tables = f"FROM pg_class AS c WHERE c.relnamespace = to_regnamespace('{self.schema}') AND c.relkind = 'r'"
        self.table_sizes = f"""SELECT c.relname, s.n_live_tup, s.n_dead_tup, pg_total_relation_size(c.oid)
            {tables.replace(" WHERE", " JOIN pg_stat_all_tables AS s ON s.relid = c.oid WHERE")} ORDER BY c.relname"""
        self.store_size = f"SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) {tables}"
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

    def per_shard(self, select: Callable[[str, str], str]) -> str:
        shards = "unnest(CAST(:shards AS integer[]), CAST(:floors AS bigint[])) AS s(n, floor)"
        return f"SELECT c.* FROM {shards} CROSS JOIN LATERAL ({select('s.n', 's.floor')}) AS c"

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

    def json_field(self, column: str, field: str) -> str:
        return f"{column} ->> '{field}'"

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
        return AdvisoryLocks(self.cluster)

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

    def senders(self, conn: Connection) -> set[str]:
        # Every INSERT takes this lock before it draws a number, and holds it until its transaction is visible or gone.
        held = fetch(
            conn,
            "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'relation' "
            "AND mode = 'RowExclusiveLock' AND relation = CAST(%(table)s AS regclass) "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            {"table": self.table("message")},
        )
        return {transaction for (transaction,) in held}

    def concerns(self, conn: Connection, locks: int) -> list[str]:
        [(vacuums, room)] = fetch(
            conn,
            "SELECT current_setting('autovacuum') = 'on', "
            "current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int",
        )
        found = []
        if not vacuums:
            found.append("autovacuum is off: dead rows pile up, and every claim reads past more of them")
        if locks > room // 4:
            found.append(
                f"drains may hold {locks:,} locks at once, a quarter of the server's lock table is {room // 4:,}: "
                "raise max_locks_per_transaction, or lower entity_batch_size"
            )
        return found

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
