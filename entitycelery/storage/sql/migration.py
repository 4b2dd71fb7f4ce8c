"""The schema: numbered SQL files, forward only, applied under a lock, each recorded with its checksum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from importlib import resources
from typing import Any

import msgspec
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.exceptions import ConfigurationError, SchemaMissing
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.statement import fetch, is_missing_schema, run, store_errors

_CREATE_RECORD = (
    "CREATE TABLE IF NOT EXISTS {migration} "
    "(number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at {instant} NOT NULL)"
)


NEEDS_MIGRATION = "needs_migration"
"""The row of `meta` with the newest migration that every release which uses the store must know."""


class Migration(msgspec.Struct, frozen=True):
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return blake2b(self.sql.encode(), digest_size=16).hexdigest()


def migrations(dialect_name: str) -> list[Migration]:
    """All migrations of a database, in order."""
    folder = resources.files("entitycelery.storage") / "migrations" / dialect_name
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [Migration(int(f.name[:4]), f.name.removesuffix(".sql"), f.read_text()) for f in files]


class Schema:
    """A cluster's tables and views: created, upgraded, checked and removed, each in a transaction of its own."""

    def __init__(
        self, dialect: Dialect, hashing: Hashing, connect: Callable[[str], AbstractContextManager[Connection]]
    ) -> None:
        self._dialect = dialect
        self._hashing = hashing
        self._connect = connect
        self._shards = hashing.number
        self._all = migrations(dialect.name)
        self._create_record = dialect.sql(_CREATE_RECORD, instant=dialect.instant_type)
        self._applied = dialect.sql("SELECT number, checksum FROM {migration} ORDER BY number")
        self._record = dialect.sql(
            "INSERT INTO {migration} (number, name, checksum, applied_at) "
            f"VALUES (:number, :name, :checksum, {dialect.now})"
        )
        self._keep_shards = dialect.sql(dialect.keep_shards)
        self._meta = dialect.sql("SELECT name, value FROM {meta}")
        self._keep = dialect.sql(
            "INSERT INTO {meta} (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING"
        )

    def upgrade(self) -> list[str]:
        """Create the schema, or apply what is missing, in one transaction; the names of what was applied.

        Raises:
            ConfigurationError: The store belongs to another cluster or has other shards.
        """
        with self._connect("upgrading the schema") as conn:
            # A busy SQLite file would have every starting process wait for its lock.
            missing = self._missing(conn)
            if missing:
                with self._dialect.migration_scope(conn):
                    missing = self._apply(conn)
                    self._check_meta(conn)
            else:
                self._check_meta(conn)
            self._hashing.agree()
            return [m.name for m in missing]

    def migrations(self) -> list[tuple[str, bool]]:
        """The name of every migration and whether it is applied."""
        with self._connect("reading the schema") as conn:
            applied = self._applied_checksums(conn)
        return [(m.name, m.number in applied) for m in self._all]

    def verify(self) -> None:
        """Check that the store is as this release needs it, or as a newer one made it that this one can work with, and
        that connections are what locks need.

        Raises:
            SchemaMissing: A migration is missing, or was applied in another form, or is not known and must be; the
                message gives the command.
            ConfigurationError: The store belongs to another cluster or has other shards, or connections lead through a
                pooler that entity_lock_mode does not allow for.
        """
        with store_errors("checking the connections"):
            self._dialect.check_sessions()
        with self._connect("checking the schema") as conn:
            self._check_migrations(conn)
            self._check_meta(conn)
        self._hashing.agree()

    def sql(self) -> str:
        """All migrations as one script, for people who run their own; needs no connection."""
        record = _CREATE_RECORD.format(migration="migration", instant=self._dialect.instant_type)
        parts = [*self._dialect.script_head, f"{record};"]
        for migration in self._all:
            parts.append(f"\n-- {migration.name}\n{migration.sql.strip()}")
            parts.append(
                "INSERT INTO migration (number, name, checksum, applied_at) "
                f"VALUES ({migration.number}, '{migration.name}', '{migration.checksum}', {self._dialect.script_now});"
            )
        for name, value in (("cluster", self._dialect.cluster), ("shards_per_group", self._shards)):
            parts.append(f"INSERT INTO meta (name, value) VALUES ('{name}', '{value}');")
        if self._dialect.keep_shards:
            parts.append(self._dialect.keep_shards.format(shards_per_group="shards_per_group", meta="meta") + ";")
        return "\n".join(parts) + "\n"

    def make_views(self, views: Collection[tuple[str, str, dict[str, str]]]) -> None:
        """Make, or make anew, the view of each entity type: view name, type name, kinds of columns."""
        wanted = [(name, self._dialect.view(name, type_name, columns)) for name, type_name, columns in views]
        with self._connect("making views") as conn:
            outdated = [view for name, view in wanted if not self._dialect.has_view(conn, name, view[-1])]
            if not outdated:
                return
            with self._dialect.migration_scope(conn):
                for statements in outdated:
                    for statement in statements:
                        run(conn, statement.replace("%", "%%"))

    def drop(self) -> None:
        """Remove the cluster's tables and all that is in them; a SQLite file is left to its owner."""
        with self._connect("dropping the schema") as conn:
            for statement in self._dialect.drop_schema:
                run(conn, statement)

    def _missing(self, conn: Connection) -> list[Migration]:
        applied = self._applied_checksums(conn)
        return [m for m in self._all if m.number not in applied]

    def _apply(self, conn: Connection) -> list[Migration]:
        run(conn, self._create_record)
        missing = self._missing(conn)
        for migration in missing:
            for statement in statements_of(migration.sql):
                run(conn, statement.replace("%", "%%"))
            values = {"number": migration.number, "name": migration.name, "checksum": migration.checksum}
            run(conn, self._record, values)
        run(conn, self._keep, {"name": "cluster", "value": self._dialect.cluster})
        run(conn, self._keep, {"name": "shards_per_group", "value": str(self._shards)})
        if self._keep_shards:
            run(conn, self._keep_shards)
        return missing

    def _check_migrations(self, conn: Connection) -> None:
        applied = self._applied_checksums(conn)
        missing = [m.name for m in self._all if m.number not in applied]
        if missing:
            what = f"lacks {', '.join(missing)}" if applied else f"has no schema for cluster {self._dialect.cluster!r}"
            raise SchemaMissing(f"the store {what}; run: entitycelery db upgrade")
        known = max(m.number for m in self._all)
        # Old and new releases run side by side in a deployment, and old ones come back in a rollback. So a migration
        # only adds; one that older releases cannot work with writes its number down here.
        needed = int(dict(_pairs(fetch(conn, self._meta))).get(NEEDS_MIGRATION, 0))
        if needed > known:
            raise SchemaMissing(f"the store has migration {needed}, which this release does not know: upgrade it")
        changed = [m.name for m in self._all if applied[m.number] != m.checksum]
        if changed:
            raise SchemaMissing(
                f"migration {changed[0]} was applied to the store in another form than this release has"
            )

    def _applied_checksums(self, conn: Connection) -> dict[int, str]:
        try:
            return dict(_pairs(fetch(conn, self._applied)))
        except DBAPIError as exc:
            if is_missing_schema(exc):
                return {}
            raise

    def _check_meta(self, conn: Connection) -> None:
        kept: dict[str, str] = dict(_pairs(fetch(conn, self._meta)))
        if kept.get("cluster") != self._dialect.cluster:
            raise ConfigurationError(
                f"the store belongs to cluster {kept.get('cluster')!r}, entity_cluster says {self._dialect.cluster!r}"
            )
        if kept.get("shards_per_group") != str(self._shards):
            raise ConfigurationError(
                f"the store has {kept.get('shards_per_group')} shards per group, "
                f"entity_shards_per_group says {self._shards}"
            )


def statements_of(script: str) -> list[str]:
    """The statements of a migration file: its comments are whole lines, and no text in it holds a semicolon."""
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


def _pairs(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, Any]]:
    return [(row[0], row[1]) for row in rows]
