"""Running statements: one place where parameters are styled, transactions begin and driver errors are wrapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from entitycelery.exceptions import SchemaMissing, StoreUnavailable

Row = Sequence[Any]


class Statement(str):
    """A statement; where `prepare` is not empty, the server plans it once per connection and `execute` runs it."""

    name: str
    prepare: str
    execute: str

    def __new__(cls, text: str, *, name: str = "", prepare: str = "", execute: str = "") -> Self:
        statement = super().__new__(cls, text)
        statement.name, statement.prepare, statement.execute = name, prepare, execute
        return statement


def fetch(conn: Connection, statement: str, params: Mapping[str, Any] | None = None) -> Sequence[Row]:
    """Run a statement and return all its rows."""
    return conn.exec_driver_sql(_ready(conn, statement), dict(params or {})).all()


def run(conn: Connection, statement: str, params: Mapping[str, Any] | None = None) -> int:
    """Run a statement without rows and return how many rows it changed."""
    return conn.exec_driver_sql(_ready(conn, statement), dict(params or {})).rowcount


def run_script(conn: Connection, statements: Sequence[str], params: Mapping[str, Any], *, together: bool) -> Any:
    """Run statements one after the other, in one round trip if `together`, and return the result of the last."""
    ready = [_ready(conn, statement) for statement in statements]
    for statement in ready[:-1] if not together else ():
        conn.exec_driver_sql(statement, dict(params))
    return conn.exec_driver_sql("; ".join(ready) if together else ready[-1], dict(params))


def _ready(conn: Connection, statement: str) -> str:
    """What to send for a statement: itself, or its execution once the connection has prepared it."""
    if not isinstance(statement, Statement) or not statement.prepare or not conn.info.get("may_prepare"):
        return statement
    prepared: set[str] = conn.info.setdefault("prepared", set())
    if statement.name not in prepared:
        conn.exec_driver_sql(statement.prepare)
        prepared.add(statement.name)
    return statement.execute


@contextmanager
def transaction(conn: Connection, begin: str) -> Iterator[Connection]:
    """One transaction on a connection that is in autocommit mode otherwise.

    A connection that cannot even roll back is thrown away.
    """
    conn.exec_driver_sql(begin)
    try:
        yield conn
        conn.exec_driver_sql("COMMIT")
    except BaseException:
        rollback(conn)
        raise


def rollback(conn: Connection) -> None:
    """Undo the transaction begun on `conn`; a connection that cannot do so is thrown away."""
    try:
        if not conn.invalidated:
            conn.exec_driver_sql("ROLLBACK")
    except SQLAlchemyError:
        conn.invalidate()


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        SchemaMissing: The tables are not there.
        StoreUnavailable: Any other refusal; the driver's error is the cause.
    """
    try:
        yield
    except PoolTimeout as exc:
        raise StoreUnavailable(f"{doing}: no database connection became free in time") from exc
    except DBAPIError as exc:
        if is_missing_schema(exc):
            raise SchemaMissing("the store has no schema for this cluster; run: entitycelery db upgrade") from exc
        raise StoreUnavailable(f"{doing}: {_first_line(exc)}") from exc


def is_missing_schema(exc: DBAPIError) -> bool:
    """Whether a statement failed because its table or schema does not exist."""
    code = getattr(exc.orig, "pgcode", None)
    return code in ("42P01", "3F000") or str(exc.orig).startswith("no such table")


def is_contention(exc: DBAPIError) -> bool:
    """Whether the same statements may succeed when repeated: deadlock, serialisation failure, lock time-out."""
    code = getattr(exc.orig, "pgcode", None)
    return code in ("40P01", "40001", "55P03") or "database is locked" in str(exc.orig)


def _first_line(exc: DBAPIError) -> str:
    return str(exc.orig).strip().partition("\n")[0] or type(exc.orig).__name__
