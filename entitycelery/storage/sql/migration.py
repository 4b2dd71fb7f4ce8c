"""The schema: numbered SQL files, forward only, applied under a lock, each recorded with its checksum."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from importlib import resources
from typing import Any

import msgspec
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.exceptions import ConfigurationError, SchemaMissing
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, is_missing_schema, run

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
    """Applies and checks migrations."""

    def __init__(self, dialect: Dialect, shards_per_group: int) -> None:
        self._dialect = dialect
        self._shards = shards_per_group
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

    def upgrade(self, conn: Connection) -> list[str]:
        """Apply what is missing, in one transaction; the names of what was applied.

        Raises:
            ConfigurationError: The store belongs to another cluster or has other shards.
        """
        if all(applied for _, applied in self.current(conn)):
            # A busy SQLite file would have every starting process wait for its lock.
            self._check_meta(conn)
            return []
        with self._dialect.migration_scope(conn):
            run(conn, self._create_record)
            done = {number for number, _ in fetch(conn, self._applied)}
            missing = [m for m in self._all if m.number not in done]
            for migration in missing:
                for statement in statements_of(migration.sql):
                    run(conn, statement.replace("%", "%%"))
                values = {"number": migration.number, "name": migration.name, "checksum": migration.checksum}
                run(conn, self._record, values)
            run(conn, self._keep, {"name": "cluster", "value": self._dialect.cluster})
            run(conn, self._keep, {"name": "shards_per_group", "value": str(self._shards)})
            if self._keep_shards:
                run(conn, self._keep_shards)
            self._check_meta(conn)
        return [m.name for m in missing]

    def current(self, conn: Connection) -> list[tuple[Migration, bool]]:
        """Every migration and whether it is applied."""
        applied = self._applied_checksums(conn)
        return [(m, m.number in applied) for m in self._all]

    def verify(self, conn: Connection) -> None:
        """Check that the store is as this release needs it, or as a newer one made it that this one can work with.

        Raises:
            SchemaMissing: A migration is missing, or was applied in another form, or is not known and must be.
            ConfigurationError: The store belongs to another cluster or has other shards.
        """
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
        self._check_meta(conn)

    def sql(self) -> str:
        """All migrations as one script, for people who run their own."""
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

    def make_views(self, conn: Connection, views: Collection[tuple[str, str, dict[str, str]]]) -> None:
        """Make, or make anew, the view of each entity type: name, type name, kinds of columns."""
        wanted = [(name, self._dialect.view(name, type_name, columns)) for name, type_name, columns in views]
        outdated = [statements for name, statements in wanted if not self._dialect.has_view(conn, name, statements[-1])]
        if not outdated:
            return
        with self._dialect.migration_scope(conn):
            for statements in outdated:
                for statement in statements:
                    run(conn, statement.replace("%", "%%"))

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
