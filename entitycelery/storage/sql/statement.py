"""Running statements: one place where parameters are styled, transactions begin and driver errors are wrapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from entitycelery.exceptions import ConfigurationError, SchemaMissing, StoreUnavailable

Row = Sequence[Any]

NO_SESSIONS = (
    "entity_database_url leads through a pooler that does not keep sessions (PgBouncer with pool_mode = transaction or "
    'statement): set entity_lock_mode = "rows" for all workers of the cluster, or connect to PostgreSQL itself'
)
# A statement of another's session, or none of our own.
_LOST_PREPARED = ("26000", "42P05")


class Statement(str):
    """A statement; where `prepare` is not empty, the server plans it once per connection and `execute` runs it."""

    name: str
    prepare: str
    execute: str

    def __new__(cls, text: str, *, name: str = "", prepare: str = "", execute: str = "") -> Self:
        statement = super().__new__(cls, text)
        statement.name, statement.prepare, statement.execute = name, prepare, execute
        return statement


class Result(NamedTuple):
    """What a statement gave: how many rows it changed, and the rows that it returned."""

    rowcount: int
    rows: Sequence[Row]


def mark_as_ours(info: MutableMapping[Any, Any]) -> None:
    """Say of a connection, by its `info`, that it is the store's own and lives in its pool."""
    info["ours"] = True


def fetch(conn: Connection, statement: str, params: Mapping[str, Any] | None = None) -> Sequence[Row]:
    """Run a statement and return all its rows."""
    return _execute(conn, _ready(conn, statement), params).rows


def run(conn: Connection, statement: str, params: Mapping[str, Any] | None = None) -> int:
    """Run a statement without rows and return how many rows it changed."""
    return _execute(conn, _ready(conn, statement), params).rowcount


def run_script(conn: Connection, statements: Sequence[str], params: Mapping[str, Any], *, together: bool) -> Result:
    """Run statements one after the other, in one round trip if `together`, and return the result of the last."""
    ready = [_ready(conn, statement) for statement in statements]
    if together:
        return _execute(conn, "; ".join(ready), params)
    for statement in ready[:-1]:
        _execute(conn, statement, params)
    return _execute(conn, ready[-1], params)


def _execute(conn: Connection, statement: str, params: Mapping[str, Any] | None) -> Result:
    if not conn.info.get("ours"):
        # A caller's connection: SQLAlchemy must know of every statement, since it begins the transaction.
        result = conn.exec_driver_sql(statement, dict(params or {}))
        return Result(result.rowcount, result.all() if result.returns_rows else ())
    # Our own are in autocommit mode, so the driver's cursor does; it costs half.
    fairy = conn.connection
    try:
        cursor = fairy.cursor()
        try:
            cursor.execute(statement, params or {})
            return Result(cursor.rowcount, cursor.fetchall() if cursor.description else ())
        finally:
            cursor.close()
    except conn.dialect.loaded_dbapi.Error as exc:
        raise _wrapped(conn, statement, exc) from exc


def _wrapped(conn: Connection, statement: str, exc: Any) -> BaseException:
    """The driver's error as SQLAlchemy's; connections that are lost are thrown away."""
    dbapi = conn.dialect.loaded_dbapi
    is_lost = conn.dialect.is_disconnect(exc, conn.connection, None)
    if is_lost:
        conn.invalidate(exc)
        # Where one is lost the idle ones are as well; each would fail whoever takes it.
        conn.engine.dispose()
    error: BaseException = DBAPIError.instance(
        statement, None, exc, dbapi.Error, connection_invalidated=is_lost, dialect=conn.dialect, hide_parameters=True
    )
    return error


def _ready(conn: Connection, statement: str) -> str:
    """What to send for a statement: itself, or its execution once the connection has prepared it."""
    if not isinstance(statement, Statement) or not statement.prepare or not conn.info.get("ours"):
        return statement
    prepared: set[str] = conn.info.setdefault("prepared", set())
    if statement.name not in prepared:
        _execute(conn, statement.prepare, None)
        prepared.add(statement.name)
    return statement.execute


@contextmanager
def transaction(conn: Connection, begin: str) -> Iterator[Connection]:
    """One transaction on a connection that is in autocommit mode otherwise.

    A connection that cannot even roll back is thrown away.
    """
    run(conn, begin)
    try:
        yield conn
        run(conn, "COMMIT")
    except BaseException:
        rollback(conn)
        raise


def rollback(conn: Connection) -> None:
    """Undo the transaction begun on `conn`; a connection that cannot do so is thrown away."""
    try:
        if not conn.invalidated:
            run(conn, "ROLLBACK")
    except SQLAlchemyError:
        conn.invalidate()


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        SchemaMissing: The tables are not there.
        ConfigurationError: What a connection has prepared is not there: it is no session.
        StoreUnavailable: Any other refusal; the driver's error is the cause.
    """
    try:
        yield
    except PoolTimeout as exc:
        raise StoreUnavailable(f"{doing}: no database connection became free in time") from exc
    except DBAPIError as exc:
        if is_missing_schema(exc):
            raise SchemaMissing("the store has no schema for this cluster; run: entitycelery db upgrade") from exc
        if getattr(exc.orig, "pgcode", None) in _LOST_PREPARED:
            raise ConfigurationError(NO_SESSIONS) from exc
        raise StoreUnavailable(f"{doing}: {first_line(exc)}") from exc


def is_missing_schema(exc: DBAPIError) -> bool:
    """Whether a statement failed because its table or schema does not exist."""
    code = getattr(exc.orig, "pgcode", None)
    return code in ("42P01", "3F000") or str(exc.orig).startswith("no such table")


def is_contention(exc: DBAPIError) -> bool:
    """Whether the same statements may succeed when repeated: deadlock, serialisation failure, lock time-out."""
    code = getattr(exc.orig, "pgcode", None)
    return code in ("40P01", "40001", "55P03") or "database is locked" in str(exc.orig)


def is_unstorable(exc: DBAPIError) -> bool:
    """Whether the database does not take what a statement carries, however often it is repeated."""
    code = str(getattr(exc.orig, "pgcode", None))
    refused = isinstance(exc, DataError | IntegrityError) or code.startswith("54")
    return refused or str(exc.orig).startswith(("malformed JSON", "string or blob too big"))


def first_line(exc: DBAPIError) -> str:
    """What the driver said."""
    return str(exc.orig).strip().partition("\n")[0] or type(exc.orig).__name__
