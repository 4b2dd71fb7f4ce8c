"""The steps of a batch's commit on PostgreSQL, each of which sees what became of the one before, in one statement."""

from __future__ import annotations

# The division fails where something is missing, so that what follows in the same round trip is not committed.
FINISH_BATCH = """
    WITH ended AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:rows AS json))
            AS r(id text, rev bigint, status text, result text, failure text)
    ), gone AS (
        DELETE FROM {message} AS m USING ended AS r WHERE m.id = ANY(:ids) AND m.id = r.id AND m.rev = r.rev
        RETURNING m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, r.result, r.failure
    ), replied AS (
        INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at)
        SELECT id, fingerprint, type, entity_id, operation, status, CAST(result AS jsonb), CAST(failure AS jsonb),
               clock_timestamp()
        FROM gone
    ), {state_steps}
    SELECT 1 / CASE WHEN (SELECT count(*) FROM gone) = :messages AND (SELECT count(*) FROM won) = :entities
                    THEN 1 ELSE 0 END
"""

# Unsorted writes of overlapping drains deadlock; sorted ones do not. A row that changes while it is waited for has
# another version by then. Whatever stands where a first state is to be, somebody put it there in the meantime.
STATE_STEPS = """
    given AS MATERIALIZED (
        SELECT * FROM {source} WHERE {condition}
    ), first AS (
        INSERT INTO {entity} (type, entity_id)
        SELECT type, entity_id FROM given AS g
        WHERE version = 0 AND NOT EXISTS (SELECT 1 FROM {state} WHERE type = g.type AND entity_id = g.entity_id)
        ORDER BY type, entity_id
        ON CONFLICT (type, entity_id) DO NOTHING
        RETURNING type, entity_id
    ), born AS (
        INSERT INTO {state} (type, entity_id, version, state_version, state, timers, signals, updated_at)
        SELECT type, entity_id, 1, g.state_version, CAST(g.state AS jsonb), CAST(g.timers AS jsonb),
               CAST(g.signals AS jsonb), clock_timestamp()
        FROM first JOIN given AS g USING (type, entity_id)
        ON CONFLICT (type, entity_id, era) DO NOTHING
        RETURNING type, entity_id
    ), locked AS (
        SELECT g.*, s.place
        FROM (SELECT * FROM given ORDER BY type, entity_id OFFSET 0) AS g CROSS JOIN LATERAL (
            SELECT ctid AS place, version FROM {state} WHERE type = g.type AND entity_id = g.entity_id
            ORDER BY era DESC LIMIT 1 FOR UPDATE
        ) AS s
        WHERE s.version = g.version
    ), moved AS (
        UPDATE {state} AS s
        SET version = l.version + 1, state_version = l.state_version, state = CAST(l.state AS jsonb),
            timers = CAST(l.timers AS jsonb), signals = CAST(l.signals AS jsonb), updated_at = clock_timestamp()
        FROM locked AS l WHERE s.ctid = l.place
        RETURNING s.type, s.entity_id
    ), won AS (
        SELECT type, entity_id FROM born UNION ALL SELECT type, entity_id FROM moved
    )
"""
