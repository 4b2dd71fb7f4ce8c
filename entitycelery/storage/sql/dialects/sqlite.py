"""SQLite on one host: WAL, short immediate transactions, locks as rows whose holders are known to live.

A process that drains holds an operating system lock on a file of its own beside the database; whoever meets a lock
row of another process looks there, so the rows of a dead process hold nothing back.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from entitycelery.address import ShardId
from entitycelery.exceptions import ConfigurationError
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import Ear, ReplyWaiter
from entitycelery.storage.sql.dialects.base import Dialect, Locks, Role, column_of
from entitycelery.storage.sql.dialects.holds import Holds, RowHolds
from entitycelery.storage.sql.dialects.patience import PatientConnection
from entitycelery.storage.sql.dialects.singleton_locks import RowSingletonLocks, SingletonLocks
from entitycelery.storage.sql.statement import Statement, fetch, mark_as_ours, run, transaction

_STEPS_BETWEEN_LOOKS = 50_000
_LOCKED_BY_NOW_S = 60


class SQLite(Dialect):
    name = "sqlite"
    longest_look_s = 0.05
    now = "entity_now()"
    now_once = "(SELECT entity_now())"
    begin = "BEGIN IMMEDIATE"
    one_writer = True
    for_update = ""
    for_update_of_free = ""
    instant_type = "REAL"
    begin_report = "BEGIN"
    table_sizes = " UNION ALL ".join(
        f"SELECT '{table}', count(*), NULL, NULL FROM {{{table}}}"
        for table in ("dead_letter", "message", "reply", "state")
    )
    store_size = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    states_of_ids = """{state} AS s WHERE s.type = :type
        AND s.entity_id IN (SELECT value FROM json_each(:ids))"""
    draw_fence = ("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'fence'",)
    drawn_fence = "(SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'fence')"
    script_now = "CAST(strftime('%s', 'now') AS REAL)"

    def __init__(self, url: URL, cluster: str, clock: Callable[[], float] = time.time) -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise ConfigurationError(f"SQLite 3.35 or newer is needed, this is {sqlite3.sqlite_version}")
        super().__init__(url, cluster)
        self._clock = clock
        self.in_memory = url.database == ":memory:"
        if self.in_memory:
            # One connection serves everybody, so its transactions must not interleave.
            self.guard = threading.RLock()
            self.guard_is_shared = True
        self._liveness = Liveness(None if self.in_memory else Path(f"{url.database}.processes"))

    def table(self, name: str) -> str:
        return name

    def _statement(self, text: str) -> Statement:
        return Statement(text)

    def rowset(self, parameter: str, **columns: str) -> str:
        listed = ", ".join(f"json_extract(value, '$.{name}') AS {name}" for name in columns)
        return f"(SELECT key AS ordinal, {listed} FROM json_each(:{parameter}) ORDER BY key) AS r"

    def per_shard(self, select: Callable[[str, str], str]) -> str:
        return select(":shards", "0")

    def any_of(self, expression: str, parameter: str) -> str:
        return f"{expression} IN (SELECT value FROM json_each(:{parameter}))"

    def values(self, values: Collection[Any]) -> Any:
        return self.rows(list(values))

    def contains(self, text: str, part: str) -> str:
        return f"instr({text}, {part}) > 0"

    def after(self, seconds: str) -> str:
        return f"entity_now() + {seconds}"

    def from_epoch(self, epoch_s: str) -> str:
        return epoch_s

    def to_epoch(self, instant: str) -> str:
        return instant

    def json(self, text: str) -> str:
        return text

    def json_text(self, column: str) -> str:
        return column

    def json_field(self, column: str, field: str) -> str:
        return f"CASE WHEN json_valid({column}) THEN json_extract({column}, '$.{field}') END"

    def json_with(self, column: str, field: str, text: str) -> str:
        return f"json_set({column}, '$.{field}', json({text}))"

    def insert_message(self) -> str:
        return """
            INSERT INTO {message} (id, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint,
                                   nonce, sender, reply_to, sent_at, due_at, expires_at)
            SELECT r.id, r.shard_group, r.shard, r.type, r.entity_id, r.lock_key, r.operation, r.args, r.fingerprint,
                   :nonce, r.sender, r.reply_to, entity_now(),
                   coalesce(r.deliver_at, entity_now() + r.delay_s),
                   coalesce(r.expires_at, entity_now() + r.expires_s)
            FROM {rows}
            WHERE EXISTS (SELECT 1 FROM {meta} WHERE name = 'shards_per_group' AND value = :shards)
            ORDER BY r.ordinal
            ON CONFLICT (id) DO NOTHING
        """

    def engine(self, role: Role, connections: int, timeout_s: float) -> Engine:
        connect: dict[str, Any] = {
            "timeout": timeout_s,
            "check_same_thread": False,
            "factory": PatientConnection,
        }
        arguments: dict[str, Any] = {"connect_args": connect}
        if self.in_memory:
            arguments["poolclass"] = StaticPool
        else:
            Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
            arguments.update(pool_size=connections, max_overflow=0, pool_timeout=timeout_s, pool_use_lifo=True)
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT", **arguments)
        event.listen(engine, "connect", self._prepare)
        return engine

    def _prepare(self, driver: Any, record: ConnectionPoolEntry) -> None:
        info = record.info
        mark_as_ours(info)
        driver.isolation_level = None
        driver.set_progress_handler(lambda: info.get("stopped", False), _STEPS_BETWEEN_LOOKS)
        driver.create_function("entity_now", 0, self._clock)
        driver.execute("PRAGMA journal_mode = WAL")
        driver.execute("PRAGMA synchronous = FULL")
        driver.execute("PRAGMA foreign_keys = ON")

    def claim_scope(self, conn: Connection) -> AbstractContextManager[Any]:
        return transaction(conn, self.begin)

    def locks(self, engine: Callable[[], Engine], lease_s: float) -> Locks:
        return RowLocks(self._liveness)

    def holds(self, worker: str, deadline_s: float) -> Holds:
        return ProcessHolds(self._liveness)

    def lease_engine(self, worker: str, deadline_s: float, role: Role = "lease") -> Engine:
        return self.engine(role, 1, deadline_s)

    def singleton_locks(self) -> SingletonLocks:
        return RowSingletonLocks()

    def waiter(self, engine: Callable[[], Engine]) -> AbstractContextManager[ReplyWaiter]:
        return nullcontext(PollingWaiter(self.longest_look_s))

    def check_caller(self, conn: Connection, *, keyed: bool) -> None:
        if conn.dialect.name != "sqlite":
            raise ConfigurationError(f"options(connection=...) is of {conn.dialect.name}, the store is SQLite")
        if str(conn.engine.url.database) != ":memory:" and not self.in_memory:
            theirs, ours = Path(str(conn.engine.url.database)).absolute(), Path(str(self.url.database))
            if theirs != ours:
                raise ConfigurationError(f"options(connection=...) is of {theirs}, the store is {ours}")
        driver: Any = conn.connection.driver_connection
        driver.create_function("entity_now", 0, self._clock)
        if driver.isolation_level is not None and not driver.in_transaction:
            # The driver begins a transaction only before a change: a savepoint would be the outermost, and its end
            # would commit what the caller may still roll back.
            driver.execute("BEGIN")

    def interrupt(self, conn: Connection, own: Connection) -> None:
        driver: Any = conn.connection.driver_connection
        # Unlike the driver's interrupt(), this also stops a statement that is just about to begin.
        conn.info["stopped"] = True
        if not self.in_memory:
            driver.execute("PRAGMA query_only = ON")
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        if self.in_memory:
            conn.info["stopped"] = False
        else:
            # Closed here it would be pulled from under a statement; so it goes when its last user does.
            conn.detach()

    def after_caller_commit(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Nothing tells of a commit; the sweep finds the messages."""

    def ear(self, engine: Callable[[], Engine]) -> Ear | None:
        return None

    @contextmanager
    def migration_scope(self, conn: Connection) -> Iterator[Connection]:
        with transaction(conn, self.begin):
            yield conn

    def view(self, name: str, type_name: str, columns: Mapping[str, str]) -> list[str]:
        selected = "".join(f', json_extract(state, \'$."{field}"\') AS "{column_of(field)}"' for field in columns)
        literal = type_name.replace("'", "''")
        return [
            f"DROP VIEW IF EXISTS {name}",
            f"CREATE VIEW {name} AS SELECT entity_id, version, updated_at{selected} "
            f"FROM state WHERE type = '{literal}' AND state IS NOT NULL",
        ]

    def has_view(self, conn: Connection, name: str, statement: str) -> bool:
        kept = fetch(conn, "SELECT sql FROM sqlite_master WHERE type = 'view' AND name = :name", {"name": name})
        return [row[0] for row in kept] == [statement]


class Liveness:
    """Which processes live: each holds a POSIX lock on a file of its own.

    POSIX locks belong to the process and not to the open file, so a forked child does not keep a dead parent's. For
    the same reason a process can neither test nor reopen a file of its own: it remembers which they are.
    """

    _ours: ClassVar[set[tuple[int, str]]] = set()

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        self._pid: int | None = None
        self._token = ""
        self._file: Any = None

    @property
    def token(self) -> str:
        """The name of this process, made and locked at first use after a fork."""
        if self._pid != os.getpid():
            # A thread of the parent may have held it at the fork.
            self._mutex = threading.Lock()
        with self._mutex:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._token = os.urandom(8).hex()
                self._ours.add((self._pid, self._token))
                if self._folder is not None:
                    self._folder.mkdir(exist_ok=True)
                    self._file = (self._folder / self._token).open("w")
                    fcntl.lockf(self._file, fcntl.LOCK_EX)
            return self._token

    def alive(self, token: str) -> bool:
        """Whether the process of this name lives."""
        if (os.getpid(), token) in self._ours:
            return True
        if self._folder is None:
            return False
        path = self._folder / token
        try:
            with path.open("r") as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except (BlockingIOError, PermissionError):
            return True
        path.unlink(missing_ok=True)
        return False

    def remove_dead(self) -> None:
        """Remove the files of processes that ended."""
        if self._folder is None or not self._folder.exists():
            return
        for name in os.listdir(self._folder):
            with suppress(FileNotFoundError):
                # A young one may not be locked yet.
                if time.time() - (self._folder / name).stat().st_mtime > _LOCKED_BY_NOW_S:
                    self.alive(name)


class ProcessHolds(RowHolds):
    """Leases are rows, and whether a runner is there shows in the lock of its process."""

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness

    @property
    def process(self) -> str:
        return self._liveness.token

    def locked(self, conn: Connection, runners: Sequence[tuple[str, str | None]]) -> dict[str, bool]:
        return {instance: process is not None and self._liveness.alive(process) for instance, process in runners}


class RowLocks(Locks):
    """Rows of the table `lock`, written in the transaction of the claim; a dead process's rows are removed."""

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._abandoned: set[str] = set()

    def attend(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        self._add(conn, "attention", token, [str(shard) for shard in shards])

    def forsake(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, "DELETE FROM lock WHERE kind = 'attention' AND token = :token", {"token": token})

    def attended(self, conn: Connection, shards: Sequence[ShardId]) -> set[ShardId]:
        holders = self._holders(conn, "attention", [str(shard) for shard in shards])
        return {shard for shard in shards if any(self._liveness.alive(p) for p in holders.get(str(shard), ()))}

    def claim(self, conn: Connection, token: str, keys: Collection[int]) -> set[int]:
        for abandoned in tuple(self._abandoned):
            if not run(conn, "DELETE FROM lock WHERE token = :token", {"token": abandoned}):
                # Only now is it certain that an earlier deletion was committed.
                self._abandoned.discard(abandoned)
        holders = self._holders(conn, "claim", [str(key) for key in keys])
        dead = {p for held in holders.values() for p in held if not self._liveness.alive(p)}
        for process in dead:
            run(conn, "DELETE FROM lock WHERE process = :process", {"process": process})
        free = {key for key in keys if not holders.get(str(key), set()) - dead}
        self._add(conn, "claim", token, [str(key) for key in free])
        return free

    def release(self, conn: Connection, token: str, keys: Collection[int]) -> None:
        statement = (
            "DELETE FROM lock WHERE kind = 'claim' AND token = :token AND key IN (SELECT value FROM json_each(:keys))"
        )
        run(conn, statement, {"token": token, "keys": _listed(str(key) for key in keys)})

    def release_all(self, conn: Connection, token: str) -> None:
        run(conn, "DELETE FROM lock WHERE token = :token AND kind IN ('claim', 'attention')", {"token": token})

    def abandon(self, token: str) -> None:
        # This process lives, so nobody else may take these rows for a dead one's.
        self._abandoned.add(token)

    def remove_dead(self, conn: Connection) -> None:
        for (process,) in fetch(conn, "SELECT DISTINCT process FROM lock"):
            if not self._liveness.alive(process):
                run(conn, "DELETE FROM lock WHERE process = :process", {"process": process})
        self._liveness.remove_dead()

    def evict(self, conn: Connection, token: str, session: int | None, since_epoch_s: float) -> bool:
        return bool(run(conn, "DELETE FROM lock WHERE token = :token", {"token": token}))

    def is_claimed(self, conn: Connection, key: int) -> bool:
        holders = self._holders(conn, "claim", [str(key)])
        return any(self._liveness.alive(process) for process in holders.get(str(key), ()))

    def _holders(self, conn: Connection, kind: str, keys: Sequence[str]) -> dict[str, set[str]]:
        statement = "SELECT key, process FROM lock WHERE kind = :kind AND key IN (SELECT value FROM json_each(:keys))"
        holders: dict[str, set[str]] = {}
        for key, process in fetch(conn, statement, {"kind": kind, "keys": _listed(keys)}):
            holders.setdefault(key, set()).add(process)
        return holders

    def _add(self, conn: Connection, kind: str, token: str, keys: Sequence[str]) -> None:
        statement = (
            "INSERT INTO lock (kind, key, token, process) "
            "SELECT :kind, value, :token, :process FROM json_each(:keys) WHERE true ON CONFLICT DO NOTHING"
        )
        process = self._liveness.token
        run(conn, statement, {"kind": kind, "token": token, "process": process, "keys": _listed(keys)})


def _listed(values: Iterable[str]) -> str:
    return msgspec.json.encode(list(values)).decode()
