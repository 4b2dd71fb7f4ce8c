-- Census._mail
SELECT 'message', type, operation, 0, count(*)
FROM entity_golden.message GROUP BY type, operation
UNION ALL
SELECT 'dead letter', type, operation, 0, count(*)
FROM entity_golden.dead_letter GROUP BY type, operation
ORDER BY 1, 2, 3;

-- Census._states
SELECT 'state', type, '', state_version, count(*)
FROM entity_golden.state
WHERE state IS NOT NULL GROUP BY type, state_version
ORDER BY type, state_version;

-- Changes._announce
SELECT pg_notify(c, i)
FROM unnest(CAST(%(channels)s AS text[]), CAST(%(replied)s AS text[])) AS u(c, i);

-- Changes._answer
INSERT INTO entity_golden.reply (id, fingerprint, type, entity_id, operation, status, finished_at)
SELECT id, fingerprint, type, entity_id, operation, 'cancelled', clock_timestamp()
FROM entity_golden.message
WHERE id = %(id)s;

-- Changes._delete
DELETE FROM entity_golden.message
WHERE id = %(id)s;

-- Changes._lock
SELECT shard_group, shard, blocking, reply_to
FROM entity_golden.message
WHERE id = %(id)s FOR UPDATE;

-- Changes._reschedule
UPDATE entity_golden.message
SET due_at = coalesce(to_timestamp(CAST(%(deliver_at)s AS double precision)), clock_timestamp() + CAST(%(delay_s)s AS double precision) * interval '1 second'), rev = rev + 1
WHERE id = %(id)s
RETURNING shard_group, shard, due_at <= clock_timestamp();

-- Changes._status
SELECT 'pending'
FROM entity_golden.message
WHERE id = %(id)s
UNION ALL
SELECT status
FROM entity_golden.reply
WHERE id = %(id)s;

-- Commits._announce
SELECT pg_notify(c, i)
FROM unnest(CAST(%(channels)s AS text[]), CAST(%(replied)s AS text[])) AS u(c, i);

-- Commits._bury
INSERT INTO entity_golden.dead_letter (id, seq, shard_group, shard, type, entity_id, operation, args, fingerprint, sender, attempt, crashes, reason, failure, sent_at, died_at)
SELECT m.id, m.seq, m.shard_group, m.shard, m.type, m.entity_id, m.operation, m.args, m.fingerprint, m.sender, m.attempt + 1, m.crashes, r.reason, CAST(r.failure AS jsonb), m.sent_at, clock_timestamp()
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, reason text, failure text)
JOIN entity_golden.message AS m ON m.id = r.id;

-- Commits._delete
DELETE FROM entity_golden.message
WHERE id = ANY(%(ids)s);

-- Commits._finish 1
WITH ended AS MATERIALIZED (
SELECT *
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, rev bigint, status text, result text, failure text) ), gone AS ( DELETE FROM entity_golden.message AS m
USING ended AS r
WHERE m.id = r.id AND m.rev = r.rev
RETURNING m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, r.result, r.failure ), replied AS ( INSERT INTO entity_golden.reply (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at)
SELECT id, fingerprint, type, entity_id, operation, status, CAST(result AS jsonb), CAST(failure AS jsonb), clock_timestamp()
FROM gone ), won AS ( INSERT INTO entity_golden.state (type, entity_id, version, state_version, state, updated_at)
SELECT r.type, r.entity_id, r.version + 1, r.state_version, CAST(r.state AS jsonb), clock_timestamp()
FROM json_to_recordset(CAST(%(states)s AS json)) AS r(type text, entity_id text, version bigint, state_version bigint, state text)
WHERE (SELECT count(*)
FROM gone) = %(messages)s
ORDER BY r.type, r.entity_id
ON CONFLICT (type, entity_id) DO UPDATE
SET version = excluded.version, state_version = excluded.state_version, state = excluded.state, updated_at = excluded.updated_at
WHERE state.version = excluded.version - 1
RETURNING type, entity_id )
SELECT 1 / CASE WHEN (SELECT count(*)
FROM gone) = %(messages)s AND (SELECT count(*)
FROM won) = %(entities)s THEN 1 ELSE 0 END;

-- Commits._pending
SELECT id, rev
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE;

-- Commits._retry
UPDATE entity_golden.message
SET attempt = attempt + r.counted, rev = rev + 1, due_at = clock_timestamp() + r.after_s * interval '1 second', blocking = r.blocking, last_failure = CAST(r.failure AS jsonb)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, after_s double precision, blocking boolean, counted bigint, failure text)
WHERE message.id = r.id;

-- DeadLetters._delete
DELETE FROM entity_golden.dead_letter
WHERE id = ANY(%(ids)s);

-- DeadLetters._delete_replies
DELETE FROM entity_golden.reply
WHERE id = ANY(%(ids)s);

-- DeadLetters._lock
SELECT id, seq, shard_group, type, entity_id, operation, CAST(args AS text), fingerprint, sender
FROM entity_golden.dead_letter
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE;

-- Floors._drawn
SELECT last_value - 1 + CAST(is_called AS int)
FROM entity_golden.message_seq;

-- Floors._first
SELECT c.*
FROM unnest(CAST(%(shards)s AS integer[]), CAST(%(floors)s AS bigint[])) AS s(n, floor)
CROSS
JOIN LATERAL (SELECT m.shard, m.seq
FROM entity_golden.message AS m
WHERE m.shard_group = %(shard_group)s AND m.shard = s.n AND m.due_at IS NULL AND m.seq >= s.floor
ORDER BY m.seq LIMIT 1) AS c;

-- InFlight._all
SELECT token, message_ids
FROM entity_golden.in_flight;

-- InFlight._count
UPDATE entity_golden.message
SET crashes = crashes + 1, rev = rev + 1
WHERE id = ANY(%(ids)s);

-- InFlight._lock
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE;

-- InFlight._others
SELECT token, message_ids
FROM entity_golden.in_flight
WHERE token <> %(token)s;

-- InFlight._others_locked
SELECT token, message_ids
FROM entity_golden.in_flight
WHERE token <> %(token)s
ORDER BY token FOR UPDATE;

-- InFlight._own_locked
SELECT message_ids
FROM entity_golden.in_flight
WHERE token = %(token)s FOR UPDATE;

-- InFlight._pending
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s);

-- InFlight._purge
DELETE FROM entity_golden.in_flight
WHERE CAST(extract(epoch
FROM noted_at) AS double precision) < CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - %(older_than_s)s;

-- InFlight._remove
DELETE FROM entity_golden.in_flight
WHERE token = %(token)s AND message_ids = %(message_ids)s;

-- InFlight._replace
UPDATE entity_golden.in_flight
SET message_ids = %(message_ids)s
WHERE token = %(token)s;

-- InFlight._uncount
UPDATE entity_golden.message
SET crashes = crashes - 1
WHERE id = ANY(%(ids)s) AND crashes > 0;

-- InFlight.clear_statement
DELETE FROM entity_golden.in_flight
WHERE token = %(token)s;

-- InFlight.note_statement
INSERT INTO entity_golden.in_flight (token, message_ids, noted_at)
VALUES (%(token)s, %(message_ids)s, clock_timestamp())
ON CONFLICT (token) DO UPDATE
SET message_ids = excluded.message_ids, noted_at = excluded.noted_at;

-- Mailboxes._candidates
SELECT c.*
FROM unnest(CAST(%(shards)s AS integer[]), CAST(%(floors)s AS bigint[])) AS s(n, floor)
CROSS
JOIN LATERAL (SELECT *
FROM (SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes, 1 AS delayed
FROM entity_golden.message AS m
WHERE m.shard_group = %(shard_group)s AND m.shard = s.n AND m.due_at <= (SELECT clock_timestamp()) AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.due_at LIMIT %(per_shard)s) AS d
UNION ALL
SELECT *
FROM (SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes, 0
FROM entity_golden.message AS m
WHERE m.shard_group = %(shard_group)s AND m.shard = s.n AND m.seq >= s.floor AND m.due_at IS NULL AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.seq LIMIT %(per_shard)s) AS r) AS c;

-- Mailboxes._read
SELECT m.id, m.rev, m.seq, m.type, m.entity_id, m.operation, CAST(m.args AS text), m.attempt, m.crashes, m.sender, m.reply_to, coalesce(m.expires_at <= (SELECT clock_timestamp()), false), m.lock_key, (SELECT count(*)
FROM entity_golden.in_flight AS f
WHERE f.token <> %(token)s), (SELECT nextval('entity_golden.fence')), m.last_failure ->> 'unknown_since_epoch_s', CAST(extract(epoch
FROM (SELECT clock_timestamp())) AS double precision)
FROM entity_golden.message AS m
WHERE m.id = ANY(%(ids)s) AND coalesce(m.due_at <= (SELECT clock_timestamp()), true) AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id);

-- Mailboxes._waiting_due
SELECT r.g, r.n, (SELECT CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - CAST(extract(epoch
FROM m.due_at) AS double precision)
FROM entity_golden.message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.due_at <= (SELECT clock_timestamp()) AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.due_at LIMIT 1)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(g text, n bigint, floor bigint);

-- Mailboxes._waiting_ready
SELECT r.g, r.n, (SELECT CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - CAST(extract(epoch
FROM m.sent_at) AS double precision)
FROM entity_golden.message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.seq >= r.floor AND m.due_at IS NULL AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.seq LIMIT 1)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(g text, n bigint, floor bigint);

-- Messages._count
SELECT (SELECT count(*)
FROM entity_golden.message
WHERE shard_group = %(shard_group)s AND shard = %(shard)s AND lock_key = %(lock_key)s AND type = %(type)s AND entity_id = %(entity_id)s AND due_at IS NULL) + (SELECT count(*)
FROM entity_golden.message
WHERE shard_group = %(shard_group)s AND shard = %(shard)s AND lock_key = %(lock_key)s AND type = %(type)s AND entity_id = %(entity_id)s AND due_at IS NOT NULL);

-- Messages._insert
INSERT INTO entity_golden.message (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, due_at, expires_at)
SELECT s.id, s.seq, s.shard_group, s.shard, s.type, s.entity_id, s.lock_key, s.operation, CAST(s.args AS jsonb), s.fingerprint, %(nonce)s, s.sender, s.reply_to, coalesce(to_timestamp(s.deliver_at), clock_timestamp() + s.delay_s * interval '1 second'), clock_timestamp() + s.expires_s * interval '1 second'
FROM (SELECT r.*, nextval('entity_golden.message_seq') AS seq
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, shard_group text, shard bigint, type text, entity_id text, lock_key bigint, operation text, args text, fingerprint text, sender text, reply_to text, deliver_at double precision, delay_s double precision, expires_s double precision) OFFSET 0) AS s
WHERE EXISTS (SELECT 1
FROM entity_golden.meta
WHERE name = 'shards_per_group' AND value = %(shards)s)
ORDER BY s.id
ON CONFLICT (id) DO NOTHING;

-- Messages._insert_certainly
WITH stored AS ( INSERT INTO entity_golden.message (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, due_at, expires_at)
SELECT s.id, s.seq, s.shard_group, s.shard, s.type, s.entity_id, s.lock_key, s.operation, CAST(s.args AS jsonb), s.fingerprint, %(nonce)s, s.sender, s.reply_to, coalesce(to_timestamp(s.deliver_at), clock_timestamp() + s.delay_s * interval '1 second'), clock_timestamp() + s.expires_s * interval '1 second'
FROM (SELECT r.*, nextval('entity_golden.message_seq') AS seq
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, shard_group text, shard bigint, type text, entity_id text, lock_key bigint, operation text, args text, fingerprint text, sender text, reply_to text, deliver_at double precision, delay_s double precision, expires_s double precision) OFFSET 0) AS s
WHERE EXISTS (SELECT 1
FROM entity_golden.meta
WHERE name = 'shards_per_group' AND value = %(shards)s)
ORDER BY s.id
ON CONFLICT (id) DO NOTHING
RETURNING 1)
SELECT 1 / CASE WHEN (SELECT count(*)
FROM stored) = 1 THEN 1 ELSE 0 END;

-- Messages._look
SELECT id, fingerprint, coalesce(nonce = %(nonce)s, false), 1
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
UNION ALL
SELECT id, fingerprint, false, 0
FROM entity_golden.reply
WHERE id = ANY(%(ids)s);

-- Messages._pending_ids
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s);

-- Messages._shards_kept
SELECT value
FROM entity_golden.meta
WHERE name = 'shards_per_group';

-- Messages._show_all
SELECT id, type, entity_id, operation, CAST(args AS text), shard_group, shard, attempt, crashes, CAST(extract(epoch
FROM sent_at) AS double precision), CAST(extract(epoch
FROM due_at) AS double precision), CAST(last_failure AS text)
FROM entity_golden.message
ORDER BY seq LIMIT %(limit)s;

-- Messages._show_entity
SELECT id, type, entity_id, operation, CAST(args AS text), shard_group, shard, attempt, crashes, CAST(extract(epoch
FROM sent_at) AS double precision), CAST(extract(epoch
FROM due_at) AS double precision), CAST(last_failure AS text)
FROM entity_golden.message
WHERE shard_group = %(shard_group)s AND shard = %(shard)s AND lock_key = %(lock_key)s AND type = %(type)s AND entity_id = %(entity_id)s
ORDER BY seq LIMIT %(limit)s;

-- Messages._show_shard
SELECT id, type, entity_id, operation, CAST(args AS text), shard_group, shard, attempt, crashes, CAST(extract(epoch
FROM sent_at) AS double precision), CAST(extract(epoch
FROM due_at) AS double precision), CAST(last_failure AS text)
FROM entity_golden.message
WHERE shard_group = %(shard_group)s AND shard = %(shard)s
ORDER BY seq LIMIT %(limit)s;

-- Messages._withdraw_finished
DELETE FROM entity_golden.message
WHERE id = ANY(%(ids)s) AND EXISTS (SELECT 1
FROM entity_golden.reply
WHERE reply.id = message.id);

-- Replies._delete
DELETE FROM entity_golden.reply
WHERE id = ANY(%(ids)s);

-- Replies._old
SELECT id
FROM entity_golden.reply
WHERE finished_at < (SELECT clock_timestamp() + CAST(%(age_s)s AS double precision) * interval '1 second') AND (status <> 'dead' OR (SELECT d.id
FROM entity_golden.dead_letter AS d
WHERE d.id = reply.id) IS NULL)
ORDER BY finished_at LIMIT %(limit)s;

-- Replies._read
SELECT id, type, entity_id, operation, status, CAST(result AS text), CAST(failure AS text), CAST(extract(epoch
FROM finished_at) AS double precision)
FROM entity_golden.reply
WHERE id = ANY(%(ids)s);

-- Replies._write
INSERT INTO entity_golden.reply (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at)
SELECT m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, CAST(r.result AS jsonb), CAST(r.failure AS jsonb), clock_timestamp()
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, status text, result text, failure text)
JOIN entity_golden.message AS m ON m.id = r.id;

-- Schema._applied
SELECT number, checksum
FROM entity_golden.migration
ORDER BY number;

-- Schema._create_record
CREATE TABLE IF NOT EXISTS entity_golden.migration (number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at timestamptz NOT NULL);

-- Schema._keep
INSERT INTO entity_golden.meta (name, value)
VALUES (%(name)s, %(value)s)
ON CONFLICT (name) DO NOTHING;

-- Schema._meta
SELECT name, value
FROM entity_golden.meta;

-- Schema._record
INSERT INTO entity_golden.migration (number, name, checksum, applied_at)
VALUES (%(number)s, %(name)s, %(checksum)s, clock_timestamp());

-- States._list
SELECT s.type, s.entity_id, s.version, s.state_version, CAST(s.state AS text)
FROM entity_golden.state AS s
WHERE s.state IS NOT NULL AND (s.type, s.entity_id) > (%(after_type)s, %(after_id)s) AND (CAST(%(type)s AS text) IS NULL OR s.type = %(type)s)
ORDER BY s.type, s.entity_id LIMIT %(limit)s;

-- States._of_type
SELECT s.type, s.entity_id, s.version, s.state_version, CAST(s.state AS text)
FROM unnest(CAST(%(ids)s AS text[])) AS i(id)
CROSS
JOIN LATERAL (SELECT *
FROM entity_golden.state
WHERE type = %(type)s AND entity_id = i.id LIMIT 1) AS s;

-- States._write
INSERT INTO entity_golden.state (type, entity_id, version, state_version, state, updated_at)
SELECT r.type, r.entity_id, r.version + 1, r.state_version, CAST(r.state AS jsonb), clock_timestamp()
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(type text, entity_id text, version bigint, state_version bigint, state text)
WHERE true
ORDER BY r.type, r.entity_id
ON CONFLICT (type, entity_id) DO UPDATE
SET version = excluded.version, state_version = excluded.state_version, state = excluded.state, updated_at = excluded.updated_at
WHERE state.version = excluded.version - 1
RETURNING type, entity_id;

-- Statistics._bytes
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace('entity_golden') AND c.relkind = 'r';

-- Statistics._dead
SELECT count(*)
FROM entity_golden.dead_letter;

-- Statistics._mail
SELECT count(CASE WHEN (due_at IS NULL OR due_at <= (SELECT clock_timestamp())) THEN 1 END), count(CASE WHEN NOT (due_at IS NULL OR due_at <= (SELECT clock_timestamp())) THEN 1 END), count(CASE WHEN last_failure IS NOT NULL THEN 1 END), max(CASE WHEN (due_at IS NULL OR due_at <= (SELECT clock_timestamp())) THEN CAST(extract(epoch
FROM (SELECT clock_timestamp())) AS double precision) - CAST(extract(epoch
FROM coalesce(due_at, sent_at)) AS double precision) END)
FROM entity_golden.message;

-- Statistics._replies
SELECT status, count(*)
FROM entity_golden.reply GROUP BY status
ORDER BY status;

-- Statistics._tables
SELECT c.relname, s.n_live_tup, s.n_dead_tup, pg_total_relation_size(c.oid)
FROM pg_class AS c
JOIN pg_stat_all_tables AS s ON s.relid = c.oid
WHERE c.relnamespace = to_regnamespace('entity_golden') AND c.relkind = 'r'
ORDER BY c.relname;
