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
from entitycelery.storage.port import ReplyWaiter
from entitycelery.storage.sql.statement import Statement

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
_TABLE = re.compile(r"\{(\w+)\}")
_COLUMNS_OF_VIEWS = frozenset({"entity_id", "version", "updated_at"})

Role = Literal["client", "drain", "listen"]


class Dialect(ABC):
    """One database: how statements are spelled there, how it is connected to, how it locks."""

    name: str
    now: str
    now_once: str
    """The present instant, evaluated once per statement, so that an index can be searched by it."""
    begin: str
    for_update: str
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
    for_users_sql = ""
    """Sent before a turn's own statements: undoes, for this transaction, what is set for ours."""
    begin_report: str
    """Begins a transaction that only reads, and may read long."""
    table_sizes: str
    """The name of every table, its rows, its dead rows and its bytes with all indexes, null where nobody knows."""
    store_size: str
    """The bytes of all tables and indexes."""
    insert_certainly: str = "{insert}"
    """`{insert}`, where the driver takes several statements failing with `is_overtaken` unless it stores its row."""
    finish_batch: str | None = None
    """One statement that deletes `:rows` of messages, if their rev is as given, writes their replies and then the
    states by `{write_state}`; it fails with `is_overtaken` unless it was all of `:messages` and `:entities`."""
    messages_are_gone: str = ""
    """The condition for `{write_state}` in `finish_batch`."""

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
    def insert_message(self) -> str:
        """The INSERT ... SELECT of messages from `:rows`, which draws `seq` in the order of the rows."""

    @abstractmethod
    def engine(self, role: Role, connections: int, timeout_s: float) -> Engine:
        """An engine in autocommit mode, with at most `connections` connections."""

    @abstractmethod
    def claim_scope(self, conn: Connection) -> AbstractContextManager[Any]:
        """Around the statements of a claim; a transaction where claims are rows."""

    @abstractmethod
    def locks(self, engine: Engine) -> Locks:
        """How this database holds claims and attention."""

    @abstractmethod
    def waiter(self, engine: Callable[[], Engine]) -> AbstractContextManager[ReplyWaiter]:
        """A waiter for replies."""

    announce: str = ""
    """The statement that tells waiters of replies, lists `:channels` and `:replied`; empty: nobody hears."""

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
    def committed_shards(self, engine: Callable[[], Engine]) -> list[ShardId]:
        """The shards announced by `after_caller_commit` since the last call; listening begins with the first."""

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
