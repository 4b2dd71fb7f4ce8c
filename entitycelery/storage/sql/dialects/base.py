"""What differs between databases, and nothing else: expressions, parameters, engines, locks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import msgspec
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from entitycelery.address import ShardId
from entitycelery.storage.port import Ear, ReplyWaiter
from entitycelery.storage.sql.dialects.holds import Holds
from entitycelery.storage.sql.dialects.singleton_locks import SingletonLocks
from entitycelery.storage.sql.statement import Statement

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_TABLE = re.compile(r"\{(\w+)\}")
_COLUMNS_OF_VIEWS = frozenset({"entity_id", "version", "updated_at"})

Role = Literal["client", "drain", "listen", "lease", "watch", "singleton"]


class Dialect(ABC):
    """One database: how statements are spelled there, how it is connected to, how it locks."""

    name: str
    now: str
    now_once: str
    """The present instant, evaluated once per statement, so that an index can be searched by it."""
    begin: str
    for_update: str
    for_update_of_free: str
    """`for_update` of those rows alone that nobody else has locked."""
    instant_type: str
    script_now: str
    script_head: tuple[str, ...] = ()
    drop_schema: tuple[str, ...] = ()
    """Removes all tables of the cluster; empty where the database is a file that its owner deletes."""
    draw_fence: tuple[str, ...] = ()
    """What must run before `drawn_fence` gives a number larger than every earlier one."""
    drawn_fence: str
    states_of_ids: str
    """FROM and WHERE of the states `s` of one `:type` and a list of `:ids`, each found by the primary key."""
    session_id = "NULL"
    """The number of the present database session, where it has one by which it can be ended."""
    begin_report: str
    """Begins a transaction that only reads, and may read long."""
    table_sizes: str
    """The name of every table, its rows, its dead rows and its bytes with all indexes, null where nobody knows."""
    store_size: str
    """The bytes of all tables and indexes."""
    shards_kept: str = "SELECT value FROM {meta} WHERE name = 'shards_per_group'"
    """The number of shards per group as of now, whatever the snapshot of the transaction; inserts compare with it."""
    keep_shards: str = ""
    """What must run, where anything must, once the row of `meta` is there for the first time."""
    change_shards: str = ""
    """What must run, where anything must, besides changing the row of `meta` to the number `{shards}`."""
    lock_everything: tuple[str, ...] = ()
    """Keeps everybody from changing messages, dead letters, runners and leases until the end of the transaction, which
    may take long; where a transaction that writes does not do so anyway."""
    unflushed: str = ""
    """Where the driver takes several statements: has the transaction's commit not wait for the disk."""
    flush: str = ""
    """Returns when what was committed before is on disk; empty where every commit waits for that."""
    insert_certainly: str = "{insert}"
    """`{insert}`, where the driver takes several statements failing with `is_overtaken` unless it stores its row."""
    finish_batch: str | None = None
    """One statement that deletes `:rows` of messages, if their rev is as given, writes their replies and then the
    states by `{state_steps}`; it fails with `is_overtaken` unless it was all of `:messages` and `:entities`."""
    messages_are_gone: str = ""
    """The condition of `{state_steps}` in `finish_batch`."""
    state_steps: str = ""
    """Where the key of a state ends with its era: common table expressions that write the states of `{source}`, sorted,
    if the `{condition}` holds; the last, `won`, is the addresses of those that won against other writers."""

    guard: AbstractContextManager[Any] = nullcontext()
    """Held around every use of a connection."""
    together = False
    """Whether the driver takes several statements in one round trip."""
    one_writer = False
    """Whether a transaction that writes keeps everybody else from writing."""
    shards_at_once = False
    """Whether a `per_shard` query takes a list of shards."""
    keeps_what_is_dead = False
    """Whether rows that were deleted can lie in the way of a look for long; see floor.py."""
    guard_is_shared = False
    """Whether one connection serves everybody, under the guard."""

    def __init__(self, url: URL, cluster: str) -> None:
        self.url = url
        self.cluster = cluster

    def sql(self, template: str, **fragments: str) -> Statement:
        """A statement in the driver's spelling: `{table}` is qualified, `:name` becomes a bound parameter."""
        filled = _TABLE.sub(lambda m: fragments.get(m.group(1)) or self.table(m.group(1)), template)
        return self._statement(" ".join(filled.split()))

    def rows(self, rows: Sequence[Any]) -> str:
        """The parameter for a `rowset`."""
        return msgspec.json.encode(rows).decode()

    def keyed_rows(self, rows: Sequence[Mapping[str, Any]], key: str = "id") -> dict[str, Any]:
        """The parameters of a `rowset` named `rows` that is joined with a table, and of `any_of(..., "ids")`, its keys.

        A join alone may be planned, while the table is empty, as one that reads all of it.
        """
        return {"rows": self.rows(rows), "ids": self.values([row[key] for row in rows])}

    def is_overtaken(self, exc: DBAPIError) -> bool:
        """Whether `finish_batch` or `insert_certainly` failed because it could not do all that it was to do."""
        return False

    @abstractmethod
    def table(self, name: str) -> str:
        """The qualified name of a table, view or sequence."""

    @abstractmethod
    def rowset(self, parameter: str, **columns: str) -> str:
        """A FROM item `r` over the rows of a parameter; kinds are text, int, float, bool."""

    @abstractmethod
    def per_shard(self, select: Callable[[str, str], str]) -> str:
        """A query for each of `:shards`: `select` gets the expressions for the shard's number and its floor.

        Takes all shards at once, and as many `:floors`, or one value, as `shards_at_once` says.
        """

    @abstractmethod
    def any_of(self, expression: str, parameter: str) -> str:
        """A condition: `expression` is among the values of a list parameter."""

    @abstractmethod
    def values(self, values: Collection[Any]) -> Any:
        """The list parameter for `any_of`."""

    @abstractmethod
    def contains(self, text: str, part: str) -> str:
        """A condition: one text expression contains another."""

    @abstractmethod
    def after(self, seconds: str) -> str:
        """The instant that many seconds from now; null for null."""

    @abstractmethod
    def from_epoch(self, epoch_s: str) -> str:
        """An instant from seconds since the epoch."""

    @abstractmethod
    def to_epoch(self, instant: str) -> str:
        """Seconds since the epoch of an instant."""

    @abstractmethod
    def json(self, text: str) -> str:
        """A text expression as a value of a JSON column."""

    @abstractmethod
    def json_text(self, column: str) -> str:
        """A JSON column as text."""

    @abstractmethod
    def json_field(self, column: str, field: str) -> str:
        """A number or text in the object of a JSON column; null where there is none."""

    @abstractmethod
    def json_with(self, column: str, field: str, text: str) -> str:
        """A JSON column whose object has this field, with the value that a text expression is the JSON of."""

    @abstractmethod
    def insert_message(self) -> str:
        """The INSERT ... SELECT of messages from `:rows`, which draws `seq` in the order of the rows."""

    @abstractmethod
    def engine(self, role: Role, connections: int, timeout_s: float) -> Engine:
        """An engine in autocommit mode, with at most `connections` connections."""

    @abstractmethod
    def claim_scope(self, conn: Connection) -> AbstractContextManager[Any]:
        """Around the statements of a claim; a transaction where claims are rows."""

    @abstractmethod
    def locks(self, engine: Callable[[], Engine], lease_s: float) -> Locks:
        """How this database holds claims and attention, for `lease_s` unless renewed where that expires."""

    def check_sessions(self) -> None:
        """Refuse connections that do not keep what is held by them.

        Raises:
            ConfigurationError: They do not; the sentence says what to set.
        """
        return

    def hand_over(self, conn: Connection) -> None:
        """Make ready for a turn's own statements the transaction that was begun on `conn` for ours."""
        return

    @abstractmethod
    def holds(self, worker: str, deadline_s: float) -> Holds:
        """How the runner of a worker holds its leases."""

    @abstractmethod
    def lease_engine(self, worker: str, deadline_s: float, role: Role = "lease") -> Engine:
        """An engine for one connection that is in nobody's pool, and is closed when it is given back."""

    @abstractmethod
    def singleton_locks(self) -> SingletonLocks:
        """How a runner holds singletons."""

    @abstractmethod
    def waiter(self, engine: Callable[[], Engine]) -> AbstractContextManager[ReplyWaiter]:
        """A waiter for replies."""

    longest_look_s: float = 1.0
    """How long whoever waits without announcements pauses at most between two looks."""

    announce: str = ""
    """The statement that tells waiters of replies, lists `:channels` and `:replied`: ids, and behind a new line a small
    result; empty: nobody hears."""

    announce_due: str = ""
    """The statement that tells of the earliest due moment of messages `:due_ids`, on `:due_channel`, if it is due
    `:within_s`; empty: nobody hears."""
    due_channel: str = ""

    def senders(self, conn: Connection) -> set[str]:
        """The open transactions that may have stored messages, by names that are never used again."""
        return set()

    def concerns(self, conn: Connection, locks: int) -> list[str]:
        """What to say about the server's settings, for drains that hold so many locks at once."""
        return []

    @abstractmethod
    def check_caller(self, conn: Connection, *, keyed: bool) -> None:
        """Refuse a caller's connection that a send must not use."""

    @abstractmethod
    def interrupt(self, conn: Connection, own: Connection) -> None:
        """Undo the transaction of `conn`, which another thread may be using, with the help of `own`.

        Whoever goes on using `conn` can write nothing more, and nobody else gets it.
        """

    @abstractmethod
    def after_caller_commit(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Have the shards rung once the caller's transaction commits."""

    @abstractmethod
    def ear(self, engine: Callable[[], Engine]) -> Ear | None:
        """Listens to `after_caller_commit` and `announce_due`; None where nobody can."""

    @abstractmethod
    def migration_scope(self, conn: Connection) -> AbstractContextManager[Any]:
        """A transaction in which one migrator at a time works."""

    @abstractmethod
    def view(self, name: str, type_name: str, columns: Mapping[str, str]) -> list[str]:
        """The statements that make the view of an entity type; kinds of columns are as for `rowset`, or json."""

    def has_view(self, conn: Connection, name: str, statement: str) -> bool:
        """Whether the view is known to be as its statement makes it; False where the database does not say."""
        return False

    @abstractmethod
    def _statement(self, text: str) -> Statement:
        """The statement with its parameters in the driver's style."""


class Locks(ABC):
    """Claims of entities and attention for shards, held by one drain each (`token`)."""

    @abstractmethod
    def attend(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None: ...
    @abstractmethod
    def forsake(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None: ...
    def question(self, shard: ShardId) -> tuple[str, Mapping[str, Any]] | None:
        """A statement, with its parameters, whose row says whether the shard is attended, where there is one."""
        return None

    @abstractmethod
    def attended(self, conn: Connection, shards: Sequence[ShardId]) -> set[ShardId]: ...
    @abstractmethod
    def claim(self, conn: Connection, token: str, keys: Collection[int]) -> set[int]: ...
    @abstractmethod
    def release(self, conn: Connection, token: str, keys: Collection[int]) -> None: ...
    @abstractmethod
    def release_all(self, conn: Connection, token: str) -> None: ...
    @abstractmethod
    def abandon(self, token: str) -> None:
        """A drain could not release what it holds; where that does not end with its connection, do so later."""

    @abstractmethod
    def evict(self, conn: Connection, token: str, session: int | None, since_epoch_s: float) -> bool:
        """Take everything from a drain that has been silent since then; whether it had anything."""

    def remove_dead(self, conn: Connection) -> None:
        """Remove what processes left that ended while they held it, where that does not go with them."""
        return

    @abstractmethod
    def is_claimed(self, conn: Connection, key: int) -> bool: ...


def column_of(field: str) -> str:
    """The column of a state field in a view; a name that every view has gets a `_` behind it."""
    return f"{field}_" if field in _COLUMNS_OF_VIEWS else field


def parameters_of(statement: str) -> list[str]:
    """The names of the `:name` parameters, each once, in order."""
    return list(dict.fromkeys(_PARAMETER.findall(statement)))


def parameters_replaced(statement: str, spelling: Callable[[str], str]) -> str:
    """`:name` parameters in another spelling."""
    return _PARAMETER.sub(lambda m: spelling(m.group(1)), statement)
