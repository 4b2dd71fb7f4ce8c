"""Which servers the tests may use: found once per run, reported at its end.

Owns the search: an environment variable first, then the usual port on this machine, then, for PostgreSQL, a
server of our own. Does not decide what a missing server means for a test (see conftest).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import kombu
import psycopg2
import redis
from kombu.exceptions import OperationalError as BrokerError
from psycopg2 import sql

from tests import faked_clock
from tests.embedded_postgres import DEFAULT_VERSION, EmbeddedPostgres
from tests.pgbouncer import PgBouncer

POSTGRES_VARIABLE = "ENTITY_TEST_POSTGRES_URL"
REDIS_VARIABLE = "ENTITY_TEST_REDIS_URL"
AMQP_VARIABLE = "ENTITY_TEST_AMQP_URL"
# Said in place of a URL: use our own server even where another one runs; `embedded-18` names its major version.
EMBEDDED = "embedded"

LOCAL_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"
LOCAL_REDIS = "redis://127.0.0.1:6379"
LOCAL_AMQP = "amqp://guest:guest@127.0.0.1:5672//"

REDIS_DATABASES = range(9, 16)
REDIS_OWNER_TTL_S = 3600
REDIS_MARKER = "entitycelery:tests"
_KOMBU_KEYS = {b"_kombu.binding_deadlines", b"_kombu.binding.celery.pidbox"}
_OUR_QUEUE = re.compile(rb"\bt_[0-9a-f]{10}\b")


@dataclass(frozen=True)
class Service:
    """A server that was looked for: either its URL, or why there is none."""

    name: str
    origin: str
    url: str | None = None
    missing: str | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.origin}" if self.url else f"{self.name}: skipped, {self.missing}"


@dataclass
class Services:
    """The servers of one test run, each looked for when the first test asks for it."""

    found: dict[str, Service] = field(default_factory=dict)
    _close: list[Callable[[], object]] = field(default_factory=list)

    def postgres(self) -> Service:
        """Somebody's PostgreSQL, or our own."""
        return self._once("PostgreSQL", self._find_postgres)

    def redis(self) -> Service:
        """A Redis database that nobody else uses; tests may flush it."""
        return self._once("Redis", self._find_redis)

    def amqp(self) -> Service:
        """RabbitMQ. Tests share its virtual host, so they name their queues by cluster."""
        return self._once("RabbitMQ", self._find_amqp)

    def pgbouncer(self) -> Service:
        """A PgBouncer of our own before that PostgreSQL, in transaction mode."""
        return self._once("PgBouncer", self._start_pgbouncer)

    def faketime(self) -> Service:
        """libfaketime, by which processes of a test have clocks of their own; its "URL" is the library's path."""
        return self._once("libfaketime", self._find_faketime)

    def close(self) -> None:
        """Stop what we started, give back what we took."""
        while self._close:
            self._close.pop()()

    def _once(self, name: str, find: Callable[[], Service]) -> Service:
        if name not in self.found:
            self.found[name] = find()
        return self.found[name]

    def _find_postgres(self) -> Service:
        given = os.environ.get(POSTGRES_VARIABLE)
        if given and (given == EMBEDDED or given.startswith(f"{EMBEDDED}-")):
            return self._start_embedded(f"{POSTGRES_VARIABLE}={given}", given.partition("-")[2] or DEFAULT_VERSION)
        service = _probe("PostgreSQL", given, POSTGRES_VARIABLE, LOCAL_POSTGRES, _ping_postgres)
        if service.url or given:
            return service
        return self._start_embedded(str(service.missing))

    def _start_embedded(self, why: str, version: str = DEFAULT_VERSION) -> Service:
        server = EmbeddedPostgres(version=version)
        self._close.append(server.stop)
        try:
            url = server.start()
        except (RuntimeError, AssertionError) as exc:
            return Service(f"PostgreSQL {version}", "embedded", missing=f"{why}; {exc}")
        return Service(f"PostgreSQL {version}", f"embedded, {_host_of(url)} ({why})", url)

    def _find_redis(self) -> Service:
        given = os.environ.get(REDIS_VARIABLE)
        service = _probe("Redis", given, REDIS_VARIABLE, LOCAL_REDIS, _ping_redis)
        if service.url is None or given:
            return service
        number = next(filter(self._claim_redis_database, REDIS_DATABASES), None)
        if number is None:
            return Service("Redis", service.origin, missing=f"databases {REDIS_DATABASES} are all in use")
        return Service("Redis", f"{service.origin} database {number}", f"{LOCAL_REDIS}/{number}")

    def _start_pgbouncer(self) -> Service:
        server = self.postgres()
        if server.url is None:
            return Service("PgBouncer", "our own", missing=f"{server.name}: {server.missing}")
        pooler = PgBouncer(server.url)
        self._close.append(pooler.stop)
        try:
            url = pooler.start()
        except (RuntimeError, AssertionError) as exc:
            return Service("PgBouncer", "our own", missing=str(exc))
        return Service("PgBouncer", f"our own, {_host_of(url)}", url)

    def _find_faketime(self) -> Service:
        try:
            return Service("libfaketime", "this machine's", str(faked_clock.library()))
        except RuntimeError as exc:
            return Service("libfaketime", "this machine's", missing=str(exc))

    def _claim_redis_database(self, number: int) -> bool:
        server = redis.Redis.from_url(LOCAL_REDIS)
        owner = f"{REDIS_MARKER}:owner:{number}"
        holder = server.get(owner)
        if holder is not None and not _lives(int(holder)):
            # A run that was killed; what its workers left is looked at below.
            server.delete(owner)
        if not server.set(owner, os.getpid(), nx=True, ex=REDIS_OWNER_TTL_S):
            return False
        self._close.append(lambda: server.delete(owner))
        database = redis.Redis.from_url(f"{LOCAL_REDIS}/{number}")
        # Without our marker the data is somebody else's: never flush it.
        ours = bool(database.exists(REDIS_MARKER)) or all(map(_is_left_over, database.scan_iter()))
        if ours:
            self._close.append(database.flushdb)
        return ours

    def _find_amqp(self) -> Service:
        given = os.environ.get(AMQP_VARIABLE)
        return _probe("RabbitMQ", given, AMQP_VARIABLE, LOCAL_AMQP, _ping_amqp)


@contextmanager
def fresh_postgres_database(server_url: str) -> Iterator[str]:
    """A database of its own for one test, dropped afterwards whoever is still connected."""
    name = f"entity_test_{uuid4().hex[:12]}"
    parts = urlsplit(server_url)
    _execute(server_url, "CREATE DATABASE {}", name)
    try:
        yield urlunsplit(parts._replace(path=f"/{name}"))
    finally:
        _execute(server_url, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def by_way_of(pooler_url: str, url: str) -> str:
    """The URL of a database by way of a pooler."""
    return urlunsplit(urlsplit(pooler_url)._replace(path=urlsplit(url).path))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_left_over(key: bytes) -> bool:
    """Whether a worker that outlived its test wrote this key after the database was flushed."""
    return key in _KOMBU_KEYS or bool(_OUR_QUEUE.search(key))


def flush_redis_database(url: str) -> None:
    """Empty the database, and mark it as ours."""
    database = redis.Redis.from_url(url)
    database.flushdb()
    database.set(REDIS_MARKER, os.getpid())
    database.close()


def _probe(name: str, given: str | None, variable: str, local: str, ping: Callable[[str], None]) -> Service:
    url = given or local
    origin = variable if given else _host_of(local)
    try:
        ping(url)
    except (OSError, psycopg2.Error, redis.RedisError, BrokerError) as exc:
        return Service(name, origin, missing=f"no answer from {origin}: {type(exc).__name__}")
    return Service(name, origin, url)


def _ping_postgres(url: str) -> None:
    psycopg2.connect(url, connect_timeout=3).close()


def _ping_redis(url: str) -> None:
    with redis.Redis.from_url(url, socket_connect_timeout=3) as client:
        client.ping()


def _ping_amqp(url: str) -> None:
    with kombu.Connection(url, connect_timeout=3) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)


def _execute(url: str, statement: str, database: str) -> None:
    connection = psycopg2.connect(url, connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(sql.Identifier(database)))
    finally:
        connection.close()


def _host_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}"
