"""From any user's database URL to what the driver needs."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from entitycelery.exceptions import ConfigurationError

_POSTGRESQL = frozenset({"postgres", "postgresql", "postgresql+psycopg2"})
_SQLITE = frozenset({"sqlite", "sqlite+pysqlite"})
_SECRETS = ("password", "sslpassword")


def driver_url(text: str) -> URL:
    """The SQLAlchemy URL of a store: psycopg2 for every spelling of PostgreSQL, an absolute path for SQLite.

    `postgresql://` would mean another driver in SQLAlchemy 2.1, and `postgres://` none at all. `sqlite://` is a store
    in memory, for tests.

    Raises:
        ConfigurationError: The text is no URL, or names a database that is not supported.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Without its cause, which quotes what stands in the port's place: it may be a password.
        raise ConfigurationError(
            "entity_database_url is no database URL: expected postgresql://... or sqlite:///..."
        ) from None
    if url.drivername in _POSTGRESQL:
        return url.set(drivername="postgresql+psycopg2")
    if url.drivername in _SQLITE:
        in_memory = url.database in (None, "", ":memory:")
        database = ":memory:" if in_memory else str(Path(str(url.database)).expanduser().absolute())
        return url.set(drivername="sqlite+pysqlite", database=database)
    raise ConfigurationError(
        f"entity_database_url names {url.drivername!r}; supported are postgresql:// (psycopg2) and sqlite:///"
    )


def shown(url: URL) -> str:
    """The URL for people, without the password."""
    name = url.drivername.partition("+")[0]
    plain = url.set(drivername=name).difference_update_query(_SECRETS)
    return plain.render_as_string(hide_password=True)
