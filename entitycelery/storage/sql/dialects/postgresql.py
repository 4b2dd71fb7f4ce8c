"""PostgreSQL 15 to 18 through psycopg2: advisory locks, LISTEN/NOTIFY, one schema per cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import Any

import psycopg2
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from entitycelery.address import ShardId, lock_space
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.placement import WORKER_VARIABLE
from entitycelery.storage.port import Ear, ReplyWaiter
from entitycelery.storage.sql.dialects.advisory import AdvisoryLocks
from entitycelery.storage.sql.dialects.base import Dialect, Locks, Role, column_of, parameters_of, parameters_replaced
from entitycelery.storage.sql.dialects.commit_steps import FINISH_BATCH, STATE_STEPS
from entitycelery.storage.sql.dialects.holds import Holds
from entitycelery.storage.sql.dialects.listening import ListeningEar, ListeningWaiter
from entitycelery.storage.sql.dialects.session_arguments import connect_args, cooperate_with_gevent
from entitycelery.storage.sql.dialects.session_holds import SessionHolds
from entitycelery.storage.sql.dialects.sessions import CONNECTIONS, check_sessions, connect
from entitycelery.storage.sql.dialects.singleton_locks import SessionSingletonLocks, SingletonLocks
from entitycelery.storage.sql.statement import Statement, fetch, mark_as_ours, run, transaction

_DIVISION_BY_ZERO = "22012"
_CHECK_TIMEOUT_S = 5.0
_KINDS = {"text": "text", "int": "bigint", "float": "double precision", "bool": "boolean"}
_CASTS = {"int": "bigint", "float": "double precision", "bool": "boolean"}
_PLAN_AS_USUAL = "SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = on; SET LOCAL plan_cache_mode = auto"


class PostgreSQL(Dialect):
    name = "postgresql"
    now = "clock_timestamp()"
    now_once = "(SELECT clock_timestamp())"
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    for_update = "FOR UPDATE"
    for_update_of_free = "FOR UPDATE SKIP LOCKED"
    together = True
    shards_at_once = True
    keeps_what_is_dead = True
    instant_type = "timestamptz"
    session_id = "pg_backend_pid()"
    script_now = "clock_timestamp()"
    for_users_sql = f"{_PLAN_AS_USUAL}; SET LOCAL lock_timeout = 0"
    """Sent before a turn's own statements: undoes, for this transaction, what is set for ours."""
    begin_report = f"{begin} READ ONLY; {_PLAN_AS_USUAL}; SET LOCAL statement_timeout = 0"
    # A join could be planned as a scan of the whole table, and a cached plan stays with that.
    states_of_ids = """unnest(CAST(:ids AS text[])) AS i(id) CROSS JOIN LATERAL
        (SELECT * FROM {state} WHERE type = :type AND entity_id = i.id ORDER BY era DESC LIMIT 1) AS s"""
    announce = "SELECT pg_notify(c, i) FROM unnest(CAST(:channels AS text[]), CAST(:replied AS text[])) AS u(c, i)"
    # What it says is in the row by now, and by the clock that decides, wherever the moment came from.
    announce_due = """
        SELECT pg_notify(:due_channel, CAST(extract(epoch FROM d.due_at) AS text))
        FROM (SELECT min(due_at) AS due_at FROM {message} WHERE id = ANY(:due_ids)) AS d
        WHERE d.due_at <= clock_timestamp() + :within_s * interval '1 second'
    """
    # A sequence, since what it says is seen by statements whose snapshot is older than a reshard: one that waited for
    # it, or a caller's whole transaction in REPEATABLE READ.
    shards_kept = "SELECT last_value FROM {shards_per_group}"
    keep_shards = """
        SELECT setval('{shards_per_group}', CAST(value AS bigint)) FROM {meta} WHERE name = 'shards_per_group'
    """
    # Unlike setval it is part of the transaction.
    change_shards = "ALTER SEQUENCE {shards_per_group} RESTART WITH {shards}"
    # EXCLUSIVE keeps out SELECT FOR UPDATE too: who has a row of ours and wants the table would wait for us, and we for
    # them. Letters before messages, as a retry takes them. Whoever wants to send queues up behind us: not for ever.
    lock_everything = (
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL lock_timeout = 5000",
        "LOCK TABLE {runner}, {lease}, {dead_letter}, {message} IN EXCLUSIVE MODE",
    )
    unflushed = "SET LOCAL synchronous_commit = off"
    # A transaction that writes to the log waits for all of it.
    flush = "SELECT pg_logical_emit_message(true, 'entitycelery', '')"
    insert_certainly = """
        WITH stored AS ({insert} RETURNING 1)
        SELECT 1 / CASE WHEN (SELECT count(*) FROM stored) = 1 THEN 1 ELSE 0 END
    """
    finish_batch = FINISH_BATCH
    messages_are_gone = "(SELECT count(*) FROM gone) = :messages"
    state_steps = STATE_STEPS

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
        self.due_channel = f"entity_{cluster}_due"
        # A subquery, so that it is drawn once per statement and not once per row.
        self.drawn_fence = f"(SELECT nextval('{self.table('fence')}'))"
        cooperate_with_gevent()

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

    def contains(self, text: str, part: str) -> str:
        return f"strpos({text}, {part}) > 0"

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

    def json_with(self, column: str, field: str, text: str) -> str:
        return f"{column} || jsonb_build_object('{field}', CAST({text} AS jsonb))"

    def insert_message(self) -> str:
        # The inner query draws seq in the senders' order, the outer one inserts in the order of locks.
        return """
            INSERT INTO {message} (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint,
                                   nonce, sender, reply_to, due_at, expires_at)
            SELECT s.id, s.seq, s.shard_group, s.shard, s.type, s.entity_id, s.lock_key, s.operation,
                   CAST(s.args AS jsonb), s.fingerprint, :nonce, s.sender, s.reply_to,
                   coalesce(to_timestamp(s.deliver_at), clock_timestamp() + s.delay_s * interval '1 second'),
                   coalesce(to_timestamp(s.expires_at), clock_timestamp() + s.expires_s * interval '1 second')
            FROM (SELECT r.*, nextval('{message_seq}') AS seq FROM {rows} OFFSET 0) AS s
            WHERE EXISTS (SELECT 1 FROM {shards_per_group} WHERE last_value = CAST(:shards AS bigint))
            ORDER BY s.id
            ON CONFLICT (id) DO NOTHING
        """

    def engine(self, role: Role, connections: int, timeout_s: float) -> Engine:
        engine = create_engine(
            self.url,
            isolation_level="AUTOCOMMIT",
            pool_size=min(5, connections),
            max_overflow=max(0, connections - 5),
            pool_timeout=timeout_s,
            pool_use_lifo=True,
            connect_args=self._connect_args(role, timeout_s, os.environ.get(WORKER_VARIABLE)),
        )
        # Our own connections only: a caller's may not live as long as what is prepared on it.
        event.listen(engine, "connect", lambda _driver, record: mark_as_ours(record.info))
        event.listen(engine, "do_connect", connect)
        return engine

    def lease_engine(self, worker: str, deadline_s: float, role: Role = "lease") -> Engine:
        arguments = self._connect_args(role, deadline_s, worker)
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool, connect_args=arguments)
        event.listen(engine, "connect", lambda _driver, record: mark_as_ours(record.info))
        event.listen(engine, "do_connect", connect)
        return engine

    def holds(self, worker: str, deadline_s: float) -> Holds:
        args, arguments = create_engine(self.url).dialect.create_connect_args(self.url)
        arguments.update(self._connect_args("watch", deadline_s, worker), async_=1)
        return SessionHolds(self.cluster, lambda: psycopg2.connect(*args, **arguments))

    def singleton_locks(self) -> SingletonLocks:
        return SessionSingletonLocks(self.cluster)

    def _connect_args(self, role: Role, timeout_s: float, worker: str | None) -> dict[str, Any]:
        return connect_args(self.cluster, role, timeout_s, worker)

    def claim_scope(self, conn: Connection) -> AbstractContextManager[Any]:
        # Claims are locks of the session, not rows: no transaction is open while user code runs.
        return nullcontext()

    def locks(self, engine: Callable[[], Engine], lease_s: float) -> Locks:
        return AdvisoryLocks(self)

    def check_sessions(self) -> None:
        engine = self.engine("client", CONNECTIONS, _CHECK_TIMEOUT_S)
        try:
            check_sessions(engine)
        finally:
            engine.dispose()

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

    def hand_over(self, conn: Connection) -> None:
        # Asked, since behind a pooler the driver knows another process than the one that works.
        asked = f"{self.for_users_sql}; SELECT pg_backend_pid(), now()"
        [(pid, begun)] = fetch(conn, asked)
        conn.info["transaction"] = {"pid": pid, "begun": begun}

    def interrupt(self, conn: Connection, own: Connection) -> None:
        # Anything said on `conn` itself would wait for the statement that runs there. By its transaction: once that is
        # over, the process may work for somebody else.
        run(
            own,
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
            "WHERE pid = %(pid)s AND xact_start = %(begun)s",
            conn.info["transaction"],
        )
        conn.invalidate()
        conn.close()

    def after_caller_commit(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        # A notification inside the caller's transaction is delivered when it commits, to a runner, which rings.
        for shard in shards:
            run(conn, "SELECT pg_notify(%(c)s, %(s)s)", {"c": self.ring_channel, "s": str(shard)})

    def ear(self, engine: Callable[[], Engine]) -> Ear | None:
        return ListeningEar(engine().connect(), self.ring_channel, self.due_channel)

    @contextmanager
    def migration_scope(self, conn: Connection) -> Iterator[Connection]:
        # As long as the other migrator takes: without what a subclass sets for each transaction.
        with transaction(conn, PostgreSQL.begin):
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


def _view_column(field: str, kind: str) -> str:
    literal, column = field.replace("'", "''"), column_of(field)
    if kind == "json":
        return f"state -> '{literal}' AS \"{column}\""
    value = f"state ->> '{literal}'"
    return f'CAST({value} AS {_CASTS[kind]}) AS "{column}"' if kind in _CASTS else f'{value} AS "{column}"'
