"""A store that has kept ten million replies: whether mail is still handled as fast, and by which scans.

Two runs of the same backlog, on an empty store and on a full one.
"""

from __future__ import annotations

from benchmarks.bench import Database, Setup, fresh_database, send_backlog, worker

_ACCOUNTS = 10_000
_TABLES = ("message", "reply", "state")
# Ids that grow with time, as those of real messages do.
_FILL = """
    INSERT INTO entity_default.reply (id, fingerprint, type, entity_id, operation, status, result, finished_at)
    SELECT '01900000-' || lpad(to_hex(n), 8, '0') || '-7000-8000-' || substr(md5(n::text), 1, 12), md5(n::text),
           'Account', 'a' || n %% 10000, 'deposit', 'done', '1', clock_timestamp() - (%s - n) * interval '10 ms'
    FROM generate_series(1, %s) n
"""


def replies(setup: Setup, kept: int) -> dict[str, float]:
    """Rates without and with so many replies, and the sequential scans of the second run, by table."""
    empty_per_s, _ = _run(setup, 0)
    full_per_s, scans = _run(setup, kept)
    return {
        "handled/s, no replies kept": empty_per_s,
        f"handled/s, {kept:,} replies kept": full_per_s,
        f"{kept:,} replies kept / none": full_per_s / empty_per_s,
        **{f"{kept:,} replies kept: sequential scans of {table}": count for table, count in scans.items()},
    }


def _run(setup: Setup, kept: int) -> tuple[float, dict[str, float]]:
    with fresh_database(setup) as database:
        database.query(_FILL, kept, kept)
        database.query("VACUUM ANALYZE entity_default.reply")
        send_backlog(setup.messages, _ACCOUNTS)
        [begun] = database.query("SELECT clock_timestamp()")
        before = _scans(database)
        with worker(setup):
            # Through the index, so that the wait itself is no sequential scan.
            database.query("SET enable_seqscan = off")
            database.await_true("SELECT NOT EXISTS (SELECT 1 FROM entity_default.message WHERE id > '')")
        [handled, spread_s] = database.query(
            "SELECT count(*), extract(epoch FROM max(finished_at) - min(finished_at)) FROM entity_default.reply "
            "WHERE finished_at > %s",
            begun,
        )
        # Every session's counts are there once it has ended.
        after = _scans(database)
        return handled / float(spread_s), {table: after[table] - before[table] for table in _TABLES}


def _scans(database: Database) -> dict[str, float]:
    database.query("SELECT pg_stat_clear_snapshot()")
    return {
        table: float(
            database.query(
                "SELECT seq_scan FROM pg_stat_user_tables WHERE schemaname = 'entity_default' AND relname = %s", table
            )[0]
        )
        for table in _TABLES
    }
