-- AdvisoryLocks._ask
SELECT n, pg_try_advisory_xact_lock(g, n)
FROM unnest(CAST(%(g)s AS int[]), CAST(%(n)s AS int[])) WITH ORDINALITY AS u(g, n, o)
ORDER BY o;

-- AdvisoryLocks._ask_of_one
SELECT NOT pg_try_advisory_xact_lock(CAST(%(space)s AS int), CAST(%(number)s AS int));

-- AdvisoryLocks._try
SELECT k, pg_try_advisory_lock(k)
FROM unnest(CAST(%(keys)s AS bigint[])) AS u(k);

-- AdvisoryLocks._unlock
SELECT pg_advisory_unlock(k)
FROM unnest(CAST(%(keys)s AS bigint[])) AS u(k);

-- Census._loads
SELECT shard_group, shard, count(*), CAST(extract(epoch
FROM (SELECT clock_timestamp())) AS double precision) - CAST(extract(epoch
FROM min(coalesce(due_at, sent_at))) AS double precision)
FROM entity_golden.message GROUP BY shard_group, shard
ORDER BY shard_group, shard;

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
SELECT shard_group, shard, blocking, reply_to, operation
FROM entity_golden.message
WHERE id = %(id)s FOR UPDATE;

-- Changes._reschedule
UPDATE entity_golden.message
SET due_at = coalesce(to_timestamp(CAST(%(deliver_at)s AS double precision)), clock_timestamp() + CAST(%(delay_s)s AS double precision) * interval '1 second'), rev = rev + 1
WHERE id = %(id)s AND NOT parked
RETURNING shard_group, shard, due_at <= clock_timestamp();

-- Changes._status
SELECT CASE WHEN parked THEN 'done' ELSE 'pending' END
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
JOIN entity_golden.message AS m ON m.id = r.id
WHERE m.id = ANY(%(ids)s);

-- Commits._delete
DELETE FROM entity_golden.message
WHERE id = ANY(%(ids)s);

-- Commits._finish 1
WITH ended AS MATERIALIZED (
SELECT *
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, rev bigint, status text, result text, failure text) ), gone AS ( DELETE FROM entity_golden.message AS m
USING ended AS r
WHERE m.id = ANY(%(ids)s) AND m.id = r.id AND m.rev = r.rev
RETURNING m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, r.result, r.failure ), replied AS ( INSERT INTO entity_golden.reply (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at)
SELECT id, fingerprint, type, entity_id, operation, status, CAST(result AS jsonb), CAST(failure AS jsonb), clock_timestamp()
FROM gone ), given AS MATERIALIZED (
SELECT *
FROM json_to_recordset(CAST(%(states)s AS json)) AS r(type text, entity_id text, version bigint, state_version bigint, state text, timers text, signals text)
WHERE (SELECT count(*)
FROM gone) = %(messages)s ), first AS ( INSERT INTO entity_golden.entity (type, entity_id)
SELECT type, entity_id
FROM given AS g
WHERE version = 0 AND NOT EXISTS (SELECT 1
FROM entity_golden.state
WHERE type = g.type AND entity_id = g.entity_id)
ORDER BY type, entity_id
ON CONFLICT (type, entity_id) DO NOTHING
RETURNING type, entity_id ), born AS ( INSERT INTO entity_golden.state (type, entity_id, version, state_version, state, timers, signals, updated_at)
SELECT type, entity_id, 1, g.state_version, CAST(g.state AS jsonb), CAST(g.timers AS jsonb), CAST(g.signals AS jsonb), clock_timestamp()
FROM first
JOIN given AS g
USING (type, entity_id)
ON CONFLICT (type, entity_id, era) DO NOTHING
RETURNING type, entity_id ), locked AS (
SELECT g.*, s.place
FROM (SELECT *
FROM given
ORDER BY type, entity_id OFFSET 0) AS g
CROSS
JOIN LATERAL (
SELECT ctid AS place, version
FROM entity_golden.state
WHERE type = g.type AND entity_id = g.entity_id
ORDER BY era DESC LIMIT 1 FOR UPDATE ) AS s
WHERE s.version = g.version ), moved AS ( UPDATE entity_golden.state AS s
SET version = l.version + 1, state_version = l.state_version, state = CAST(l.state AS jsonb), timers = CAST(l.timers AS jsonb), signals = CAST(l.signals AS jsonb), updated_at = clock_timestamp()
FROM locked AS l
WHERE s.ctid = l.place
RETURNING s.type, s.entity_id ), won AS (
SELECT type, entity_id
FROM born
UNION ALL
SELECT type, entity_id
FROM moved )
SELECT 1 / CASE WHEN (SELECT count(*)
FROM gone) = %(messages)s AND (SELECT count(*)
FROM won) = %(entities)s THEN 1 ELSE 0 END;

-- Commits._park
UPDATE entity_golden.message
SET parked = true, rev = rev + 1, due_at = clock_timestamp() + 10000000000.0 * interval '1 second'
WHERE id = ANY(%(ids)s);

-- Commits._pending
SELECT id, rev
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE;

-- Commits._retry
UPDATE entity_golden.message
SET attempt = attempt + r.counted, rev = rev + 1, due_at = clock_timestamp() + r.after_s * interval '1 second', blocking = r.blocking, last_failure = CAST(r.failure AS jsonb)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, after_s double precision, blocking boolean, counted bigint, failure text)
WHERE message.id = ANY(%(ids)s) AND message.id = r.id;

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

-- DueFloors._first
SELECT c.*
FROM unnest(CAST(%(shards)s AS integer[]), CAST(%(floors)s AS bigint[])) AS s(n, floor)
CROSS
JOIN LATERAL (SELECT m.shard, CAST(extract(epoch
FROM m.due_at) AS double precision)
FROM entity_golden.message AS m
WHERE m.shard_group = %(shard_group)s AND m.shard = s.n AND m.due_at >= to_timestamp(%(since_epoch_s)s)
ORDER BY m.due_at LIMIT 1) AS c;

-- DueFloors._now
SELECT CAST(extract(epoch
FROM clock_timestamp()) AS double precision);

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

-- Hashing._kept
SELECT last_value
FROM entity_golden.shards_per_group;

-- InFlight._count
UPDATE entity_golden.message
SET crashes = crashes + 1, rev = rev + 1
WHERE id = ANY(%(ids)s);

-- InFlight._lock
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE;

-- InFlight._of_tokens
SELECT token, message_ids, session, CAST(extract(epoch
FROM noted_at) AS double precision), CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - CAST(extract(epoch
FROM noted_at) AS double precision)
FROM entity_golden.in_flight
WHERE token = ANY(%(tokens)s);

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
WHERE noted_at < (SELECT clock_timestamp() + CAST(%(from_now_s)s AS double precision) * interval '1 second');

-- InFlight._remove
DELETE FROM entity_golden.in_flight
WHERE token = %(token)s AND message_ids = %(message_ids)s;

-- InFlight._renew
UPDATE entity_golden.in_flight
SET noted_at = clock_timestamp()
WHERE token = %(token)s;

-- InFlight._replace
UPDATE entity_golden.in_flight
SET message_ids = %(message_ids)s
WHERE token = %(token)s;

-- InFlight._since
SELECT token, message_ids, session, CAST(extract(epoch
FROM noted_at) AS double precision), CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - CAST(extract(epoch
FROM noted_at) AS double precision)
FROM entity_golden.in_flight
WHERE noted_at >= to_timestamp(%(since_epoch_s)s);

-- InFlight._uncount
UPDATE entity_golden.message
SET crashes = crashes - 1
WHERE id = ANY(%(ids)s) AND crashes > 0;

-- InFlight.clear_statement
DELETE FROM entity_golden.in_flight
WHERE token = %(token)s;

-- InFlight.note_statement
INSERT INTO entity_golden.in_flight (token, message_ids, noted_at, session)
VALUES (%(token)s, %(message_ids)s, clock_timestamp(), pg_backend_pid())
ON CONFLICT (token) DO UPDATE
SET message_ids = excluded.message_ids, noted_at = excluded.noted_at;

-- Leases._give
UPDATE entity_golden.lease
SET holder = NULL, since = NULL, expires_at = NULL
WHERE holder = %(holder)s AND EXISTS (SELECT 1
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(shard_group text, shard bigint)
WHERE r.shard_group = entity_golden.lease.shard_group AND r.shard = entity_golden.lease.shard);

-- Leases._give_all
UPDATE entity_golden.lease
SET holder = NULL, since = NULL, expires_at = NULL
WHERE holder = %(holder)s;

-- Leases._list
SELECT shard_group, shard, holder, epoch, CAST(extract(epoch
FROM since) AS double precision)
FROM entity_golden.lease
ORDER BY shard_group, shard;

-- Leases._record
INSERT INTO entity_golden.lease AS l (shard_group, shard, holder, epoch, since, expires_at)
SELECT r.shard_group, r.shard, %(holder)s, 1, clock_timestamp(), NULL
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(shard_group text, shard bigint)
WHERE true
ORDER BY r.shard_group, r.shard
ON CONFLICT (shard_group, shard) DO UPDATE
SET holder = excluded.holder, epoch = l.epoch + 1, since = excluded.since, expires_at = excluded.expires_at
WHERE true
RETURNING shard_group, shard, epoch;

-- Leases._renew
UPDATE entity_golden.lease
SET expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
WHERE holder = %(holder)s AND expires_at >= clock_timestamp()
RETURNING shard_group, shard;

-- Leases._take
INSERT INTO entity_golden.lease AS l (shard_group, shard, holder, epoch, since, expires_at)
SELECT r.shard_group, r.shard, %(holder)s, 1, clock_timestamp(), clock_timestamp() + %(lease_s)s * interval '1 second'
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(shard_group text, shard bigint)
WHERE true
ORDER BY r.shard_group, r.shard
ON CONFLICT (shard_group, shard) DO UPDATE
SET holder = excluded.holder, epoch = l.epoch + 1, since = excluded.since, expires_at = excluded.expires_at
WHERE (l.holder IS NULL OR l.expires_at < clock_timestamp() OR NOT EXISTS (SELECT 1
FROM entity_golden.runner AS o
WHERE o.instance = l.holder))
RETURNING shard_group, shard, epoch;

-- Mailboxes._candidates
SELECT c.*
FROM unnest(CAST(%(shards)s AS integer[]), CAST(%(floors)s AS bigint[])) AS s(n, floor)
CROSS
JOIN LATERAL (SELECT *
FROM (SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes, 1 AS delayed
FROM entity_golden.message AS m
WHERE m.shard_group = %(shard_group)s AND m.shard = s.n AND m.due_at >= to_timestamp(%(due_since_epoch_s)s) AND m.due_at <= (SELECT clock_timestamp()) AND NOT EXISTS (SELECT 1
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
WHERE f.noted_at >= to_timestamp(%(since_epoch_s)s) AND f.token <> %(token)s), (SELECT nextval('entity_golden.fence')), m.last_failure ->> 'unknown_since_epoch_s', CAST(extract(epoch
FROM (SELECT clock_timestamp())) AS double precision)
FROM entity_golden.message AS m
WHERE m.id = ANY(%(ids)s) AND coalesce(m.due_at <= (SELECT clock_timestamp()), true) AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id);

-- Mailboxes._waiting
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
WHERE lock_key = %(lock_key)s AND type = %(type)s AND entity_id = %(entity_id)s AND shard_group = %(shard_group)s AND shard = %(shard)s AND due_at IS NULL) + (SELECT count(*)
FROM entity_golden.message
WHERE lock_key = %(lock_key)s AND type = %(type)s AND entity_id = %(entity_id)s AND due_at IS NOT NULL);

-- Messages._insert
INSERT INTO entity_golden.message (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, due_at, expires_at)
SELECT s.id, s.seq, s.shard_group, s.shard, s.type, s.entity_id, s.lock_key, s.operation, CAST(s.args AS jsonb), s.fingerprint, %(nonce)s, s.sender, s.reply_to, coalesce(to_timestamp(s.deliver_at), clock_timestamp() + s.delay_s * interval '1 second'), coalesce(to_timestamp(s.expires_at), clock_timestamp() + s.expires_s * interval '1 second')
FROM (SELECT r.*, nextval('entity_golden.message_seq') AS seq
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, shard_group text, shard bigint, type text, entity_id text, lock_key bigint, operation text, args text, fingerprint text, sender text, reply_to text, deliver_at double precision, delay_s double precision, expires_s double precision, expires_at double precision) OFFSET 0) AS s
WHERE EXISTS (SELECT 1
FROM entity_golden.shards_per_group
WHERE last_value = CAST(%(shards)s AS bigint))
ORDER BY s.id
ON CONFLICT (id) DO NOTHING;

-- Messages._insert_certainly
WITH stored AS ( INSERT INTO entity_golden.message (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, due_at, expires_at)
SELECT s.id, s.seq, s.shard_group, s.shard, s.type, s.entity_id, s.lock_key, s.operation, CAST(s.args AS jsonb), s.fingerprint, %(nonce)s, s.sender, s.reply_to, coalesce(to_timestamp(s.deliver_at), clock_timestamp() + s.delay_s * interval '1 second'), coalesce(to_timestamp(s.expires_at), clock_timestamp() + s.expires_s * interval '1 second')
FROM (SELECT r.*, nextval('entity_golden.message_seq') AS seq
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, shard_group text, shard bigint, type text, entity_id text, lock_key bigint, operation text, args text, fingerprint text, sender text, reply_to text, deliver_at double precision, delay_s double precision, expires_s double precision, expires_at double precision) OFFSET 0) AS s
WHERE EXISTS (SELECT 1
FROM entity_golden.shards_per_group
WHERE last_value = CAST(%(shards)s AS bigint))
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

-- Moments._look
WITH c AS MATERIALIZED (SELECT clock_timestamp() AS now, clock_timestamp() + %(horizon_s)s * interval '1 second' AS horizon)
SELECT r.g, r.n, CAST(extract(epoch
FROM c.now) AS double precision), (SELECT CAST(extract(epoch
FROM m.due_at) AS double precision)
FROM entity_golden.message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.due_at >= to_timestamp(r.since) AND m.due_at <= c.now AND NOT EXISTS (SELECT 1
FROM entity_golden.message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.due_at DESC LIMIT 1), (SELECT CAST(extract(epoch
FROM m.due_at) AS double precision)
FROM entity_golden.message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.due_at > c.now AND m.due_at <= c.horizon
ORDER BY m.due_at LIMIT 1)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(g text, n bigint, since double precision)
CROSS
JOIN c;

-- Moments._tell
SELECT pg_notify(%(due_channel)s, CAST(extract(epoch
FROM d.due_at) AS text))
FROM (SELECT min(due_at) AS due_at
FROM entity_golden.message
WHERE id = ANY(%(due_ids)s)) AS d
WHERE d.due_at <= clock_timestamp() + %(within_s)s * interval '1 second';

-- NoteFloor._now
SELECT CAST(extract(epoch
FROM clock_timestamp()) AS double precision);

-- NoteFloor._since
SELECT token, CAST(extract(epoch
FROM noted_at) AS double precision)
FROM entity_golden.in_flight
WHERE noted_at >= to_timestamp(%(since_epoch_s)s);

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
JOIN entity_golden.message AS m ON m.id = r.id
WHERE m.id = ANY(%(ids)s);

-- Reshard._drop_leases
DELETE FROM entity_golden.lease
WHERE shard >= %(shards)s;

-- Reshard._forget_meta
DELETE FROM entity_golden.meta
WHERE name = %(name)s;

-- Reshard._free_leases
UPDATE entity_golden.lease
SET holder = NULL, since = NULL, expires_at = NULL;

-- Reshard._meta
SELECT value
FROM entity_golden.meta
WHERE name = %(name)s;

-- Reshard._move_dead_letter
UPDATE entity_golden.dead_letter
SET shard = r.shard
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, shard bigint)
WHERE dead_letter.id = r.id;

-- Reshard._move_message
UPDATE entity_golden.message
SET shard = r.shard
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, shard bigint)
WHERE message.id = r.id;

-- Reshard._page_dead_letter
SELECT id, shard_group, shard, entity_id
FROM entity_golden.dead_letter
WHERE id > %(after)s
ORDER BY id LIMIT %(limit)s;

-- Reshard._page_message
SELECT id, shard_group, shard, entity_id
FROM entity_golden.message
WHERE id > %(after)s
ORDER BY id LIMIT %(limit)s;

-- Reshard._set_meta
INSERT INTO entity_golden.meta (name, value)
VALUES (%(name)s, %(value)s)
ON CONFLICT (name) DO UPDATE
SET value = excluded.value;

-- Runners._confirm
UPDATE entity_golden.runner
SET seen_at = clock_timestamp(), starved = %(starved)s, leaving = %(leaving)s, refused = %(refused)s
WHERE instance = %(instance)s;

-- Runners._insert
INSERT INTO entity_golden.runner (instance, worker, address, host, pid, shard_groups, weight, pool, library_version, app_version, machine_id, process, started_at, seen_at)
VALUES (%(instance)s, %(worker)s, %(address)s, %(host)s, %(pid)s, %(shard_groups)s, %(weight)s, %(pool)s, %(library_version)s, %(app_version)s, %(machine_id)s, %(process)s, clock_timestamp(), clock_timestamp())
ON CONFLICT DO NOTHING;

-- Runners._is_registered
SELECT count(*)
FROM entity_golden.runner
WHERE worker = %(worker)s;

-- Runners._list
SELECT instance, worker, address, host, pid, shard_groups, weight, pool, library_version, app_version, machine_id, CAST(extract(epoch
FROM started_at) AS double precision), CAST(extract(epoch
FROM seen_at) AS double precision), CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - CAST(extract(epoch
FROM seen_at) AS double precision), starved, leaving, process, refused
FROM entity_golden.runner
ORDER BY address, instance;

-- Runners._machine_ids
SELECT machine_id
FROM entity_golden.runner;

-- Runners._remove
DELETE FROM entity_golden.runner
WHERE instance = %(instance)s AND abs(CAST(extract(epoch
FROM seen_at) AS double precision) - %(seen_at)s) < 0.00001;

-- Runners._remove_worker
DELETE FROM entity_golden.runner
WHERE worker = %(worker)s;

-- Runners._withdraw
DELETE FROM entity_golden.runner
WHERE instance = %(instance)s;

-- Schedules._due
SELECT name, CAST(definition AS text), generation, origin, paused, tick, CAST(extract(epoch
FROM tick_at) AS double precision), CAST(extract(epoch
FROM look_at) AS double precision), last_tick, CAST(extract(epoch
FROM last_fired_at) AS double precision), last_message_id, fired, skipped, failure
FROM entity_golden.schedule
WHERE NOT paused AND look_at <= (SELECT clock_timestamp())
ORDER BY look_at LIMIT %(limit)s;

-- Schedules._first_look
SELECT CAST(extract(epoch
FROM look_at) AS double precision) - CAST(extract(epoch
FROM clock_timestamp()) AS double precision)
FROM entity_golden.schedule
WHERE NOT paused AND look_at IS NOT NULL
ORDER BY look_at LIMIT 1;

-- Schedules._lock
SELECT name, generation, tick, last_message_id
FROM entity_golden.schedule
WHERE name = ANY(%(names)s) AND NOT paused
ORDER BY name FOR UPDATE;

-- Schedules._move
UPDATE entity_golden.schedule
SET tick = r.tick, tick_at = to_timestamp(r.tick_at), look_at = to_timestamp(r.look_at), last_tick = coalesce(r.last_tick, schedule.last_tick), last_fired_at = CASE WHEN r.fired > 0 THEN clock_timestamp() ELSE last_fired_at END, last_message_id = coalesce(r.message_id, last_message_id), fired = schedule.fired + r.fired, skipped = schedule.skipped + r.skipped, failure = r.failure
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text, last_tick text, message_id text, fired bigint, skipped bigint, failure text, tick text, tick_at double precision, look_at double precision)
WHERE schedule.name = ANY(%(ids)s) AND schedule.name = r.name;

-- Schedules._now
SELECT CAST(extract(epoch
FROM clock_timestamp()) AS double precision);

-- Schedules._one
SELECT name, CAST(definition AS text), generation, origin, paused, tick, CAST(extract(epoch
FROM tick_at) AS double precision), CAST(extract(epoch
FROM look_at) AS double precision), last_tick, CAST(extract(epoch
FROM last_fired_at) AS double precision), last_message_id, fired, skipped, failure
FROM entity_golden.schedule
WHERE name = %(name)s;

-- Schedules._page
SELECT name, CAST(definition AS text), generation, origin, paused, tick, CAST(extract(epoch
FROM tick_at) AS double precision), CAST(extract(epoch
FROM look_at) AS double precision), last_tick, CAST(extract(epoch
FROM last_fired_at) AS double precision), last_message_id, fired, skipped, failure
FROM entity_golden.schedule
WHERE name > %(after)s
ORDER BY name LIMIT %(limit)s;

-- Schedules._pause
UPDATE entity_golden.schedule
SET paused = true
WHERE name = %(name)s;

-- Schedules._put
INSERT INTO entity_golden.schedule (name, definition, generation, origin, paused, tick, tick_at, look_at, created_at)
SELECT r.name, CAST(r.definition AS jsonb), r.generation, r.origin, r.paused, r.tick, to_timestamp(r.tick_at), to_timestamp(r.look_at), clock_timestamp()
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text, definition text, generation text, origin text, paused boolean, tick text, tick_at double precision, look_at double precision)
WHERE true
ORDER BY r.name
ON CONFLICT (name) DO UPDATE
SET definition = excluded.definition, origin = excluded.origin, tick = CASE WHEN schedule.generation = excluded.generation THEN schedule.tick ELSE excluded.tick END, tick_at = CASE WHEN schedule.generation = excluded.generation THEN schedule.tick_at ELSE excluded.tick_at END, look_at = CASE WHEN schedule.generation = excluded.generation THEN schedule.look_at ELSE excluded.look_at END, generation = excluded.generation, failure = NULL
WHERE schedule.generation <> excluded.generation OR schedule.definition <> excluded.definition OR schedule.origin <> excluded.origin;

-- Schedules._remove
DELETE FROM entity_golden.schedule
WHERE name = %(name)s;

-- Schedules._resume
UPDATE entity_golden.schedule
SET paused = false, tick = r.tick, tick_at = to_timestamp(r.tick_at), look_at = to_timestamp(r.look_at)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text, generation text, tick text, tick_at double precision, look_at double precision)
WHERE schedule.name = r.name AND paused AND schedule.generation = r.generation;

-- Schedules._triggered
UPDATE entity_golden.schedule
SET last_message_id = %(message_id)s
WHERE name = %(name)s;

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

-- Schema._keep_shards
SELECT setval('entity_golden.shards_per_group', CAST(value AS bigint))
FROM entity_golden.meta
WHERE name = 'shards_per_group';

-- Schema._meta
SELECT name, value
FROM entity_golden.meta;

-- Schema._record
INSERT INTO entity_golden.migration (number, name, checksum, applied_at)
VALUES (%(number)s, %(name)s, %(checksum)s, clock_timestamp());

-- SignalRows._complete
UPDATE entity_golden.message
SET args = args || jsonb_build_object('outcome', CAST(%(outcome)s AS jsonb)), due_at = clock_timestamp(), rev = rev + 1, nonce = %(nonce)s
WHERE id = %(id)s AND operation = 'entity.signal' AND attempt = 0 AND args ->> 'outcome' IS NULL AND due_at > clock_timestamp()
RETURNING id;

-- SignalRows._list
SELECT type, entity_id, CAST(args AS text), CAST(extract(epoch
FROM sent_at) AS double precision), CAST(extract(epoch
FROM due_at) AS double precision)
FROM entity_golden.message
WHERE operation = 'entity.signal' AND attempt = 0 AND args ->> 'outcome' IS NULL AND (type, entity_id) > (%(after_type)s, %(after_id)s) AND (CAST(%(type)s AS text) IS NULL OR (type = %(type)s AND entity_id = %(entity_id)s))
ORDER BY type, entity_id, id LIMIT %(limit)s;

-- SignalRows._secret
SELECT value
FROM entity_golden.meta
WHERE name = 'signal_secret';

-- Singletons._ask
UPDATE entity_golden.singleton
SET asked_by = %(worker)s
WHERE name = %(name)s AND epoch = %(epoch)s;

-- Singletons._beat
UPDATE entity_golden.singleton
SET heartbeat_at = clock_timestamp()
WHERE name = %(name)s AND epoch = %(epoch)s;

-- Singletons._begin
UPDATE entity_golden.singleton
SET epoch = epoch + 1, pid = %(pid)s, started_at = clock_timestamp(), heartbeat_at = clock_timestamp(), restart_wanted = false, restarts = restarts + %(again)s
WHERE name = %(name)s AND epoch = %(epoch)s AND holder = %(worker)s
RETURNING epoch;

-- Singletons._confirm
UPDATE entity_golden.singleton
SET expires_at = clock_timestamp() + %(held_for_s)s * interval '1 second'
WHERE holder = %(worker)s AND EXISTS (SELECT 1
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text, epoch bigint)
WHERE r.name = entity_golden.singleton.name AND r.epoch = entity_golden.singleton.epoch) AND expires_at >= clock_timestamp();

-- Singletons._declare
INSERT INTO entity_golden.singleton AS s (name, shard_group, heartbeat_interval_s)
SELECT r.name, r.shard_group, r.heartbeat_interval_s
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text, shard_group text, heartbeat_interval_s double precision)
WHERE true
ORDER BY r.name
ON CONFLICT (name) DO UPDATE
SET shard_group = excluded.shard_group, heartbeat_interval_s = excluded.heartbeat_interval_s
WHERE s.shard_group <> excluded.shard_group OR s.heartbeat_interval_s <> excluded.heartbeat_interval_s;

-- Singletons._end
UPDATE entity_golden.singleton
SET pid = NULL
WHERE name = %(name)s AND epoch = %(epoch)s AND holder = %(worker)s;

-- Singletons._fail
UPDATE entity_golden.singleton
SET pid = NULL, last_failure = %(failure)s, last_failure_at = clock_timestamp()
WHERE name = %(name)s AND epoch = %(epoch)s AND holder = %(worker)s;

-- Singletons._give
UPDATE entity_golden.singleton
SET holder = NULL, since = NULL, expires_at = NULL, pid = NULL, handed_over = true
WHERE name = %(name)s AND epoch = %(epoch)s AND holder = %(worker)s;

-- Singletons._list
SELECT name, shard_group, holder, address, epoch, CAST(extract(epoch
FROM since) AS double precision), pid, CAST(extract(epoch
FROM started_at) AS double precision), CAST(extract(epoch
FROM heartbeat_at) AS double precision), CAST(extract(epoch
FROM clock_timestamp()) AS double precision) - CAST(extract(epoch
FROM heartbeat_at) AS double precision), heartbeat_interval_s, restarts, last_failure, CAST(extract(epoch
FROM last_failure_at) AS double precision), wanted
FROM entity_golden.singleton
ORDER BY name;

-- Singletons._look
SELECT name, number, epoch, holder, (holder IS NULL OR expires_at IS NULL OR expires_at < clock_timestamp() OR expires_at > clock_timestamp() + successor_waits_s * interval '1 second'), handed_over, successor_waits_s, asked_by, (SELECT min(o.worker)
FROM entity_golden.runner AS o
WHERE o.worker = s.wanted AND NOT o.leaving), avoided, restart_wanted
FROM entity_golden.singleton AS s
WHERE name = ANY(%(names)s)
ORDER BY name;

-- Singletons._move
UPDATE entity_golden.singleton
SET wanted = %(wanted)s, avoided = %(avoided)s
WHERE name = %(name)s;

-- Singletons._restart
UPDATE entity_golden.singleton
SET restart_wanted = true
WHERE name = %(name)s;

-- Singletons._take
UPDATE entity_golden.singleton
SET holder = %(worker)s, address = %(address)s, epoch = epoch + 1, since = clock_timestamp(), expires_at = clock_timestamp() + %(held_for_s)s * interval '1 second', handed_over = false, asked_by = NULL, successor_waits_s = %(successor_waits_s)s, pid = NULL, avoided = CASE WHEN avoided = %(worker)s THEN NULL ELSE avoided END
WHERE name = %(name)s AND epoch = %(epoch)s
RETURNING epoch;

-- Singletons._take_unheld
UPDATE entity_golden.singleton
SET holder = %(worker)s, address = %(address)s, epoch = epoch + 1, since = clock_timestamp(), expires_at = clock_timestamp() + %(held_for_s)s * interval '1 second', handed_over = false, asked_by = NULL, successor_waits_s = %(successor_waits_s)s, pid = NULL, avoided = CASE WHEN avoided = %(worker)s THEN NULL ELSE avoided END
WHERE name = %(name)s AND epoch = %(epoch)s AND (holder IS NULL OR expires_at IS NULL OR expires_at < clock_timestamp() OR expires_at > clock_timestamp() + successor_waits_s * interval '1 second')
RETURNING epoch;

-- States._forget
DELETE FROM entity_golden.entity AS e
USING json_to_recordset(CAST(%(rows)s AS json)) AS r(type text, entity_id text, version bigint, state_version bigint, state text, timers text, signals text)
CROSS
JOIN LATERAL (
SELECT ctid AS place
FROM entity_golden.entity
WHERE type = r.type AND entity_id = r.entity_id LIMIT 1 ) AS f
WHERE e.ctid = f.place AND NOT EXISTS (SELECT 1
FROM entity_golden.state
WHERE type = r.type AND entity_id = r.entity_id)
RETURNING e.type, e.entity_id;

-- States._list
SELECT s.type, s.entity_id, s.version, s.state_version, CAST(s.state AS text)
FROM entity_golden.state AS s
WHERE s.state IS NOT NULL AND (s.type, s.entity_id) > (%(after_type)s, %(after_id)s) AND (CAST(%(type)s AS text) IS NULL OR s.type = %(type)s)
ORDER BY s.type, s.entity_id LIMIT %(limit)s;

-- States._of_type
SELECT s.type, s.entity_id, s.version, s.state_version, CAST(s.state AS text), CAST(s.timers AS text), CAST(s.signals AS text)
FROM unnest(CAST(%(ids)s AS text[])) AS i(id)
CROSS
JOIN LATERAL (SELECT *
FROM entity_golden.state
WHERE type = %(type)s AND entity_id = i.id
ORDER BY era DESC LIMIT 1) AS s;

-- States._write
WITH given AS MATERIALIZED (
SELECT *
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(type text, entity_id text, version bigint, state_version bigint, state text, timers text, signals text)
WHERE true ), first AS ( INSERT INTO entity_golden.entity (type, entity_id)
SELECT type, entity_id
FROM given AS g
WHERE version = 0 AND NOT EXISTS (SELECT 1
FROM entity_golden.state
WHERE type = g.type AND entity_id = g.entity_id)
ORDER BY type, entity_id
ON CONFLICT (type, entity_id) DO NOTHING
RETURNING type, entity_id ), born AS ( INSERT INTO entity_golden.state (type, entity_id, version, state_version, state, timers, signals, updated_at)
SELECT type, entity_id, 1, g.state_version, CAST(g.state AS jsonb), CAST(g.timers AS jsonb), CAST(g.signals AS jsonb), clock_timestamp()
FROM first
JOIN given AS g
USING (type, entity_id)
ON CONFLICT (type, entity_id, era) DO NOTHING
RETURNING type, entity_id ), locked AS (
SELECT g.*, s.place
FROM (SELECT *
FROM given
ORDER BY type, entity_id OFFSET 0) AS g
CROSS
JOIN LATERAL (
SELECT ctid AS place, version
FROM entity_golden.state
WHERE type = g.type AND entity_id = g.entity_id
ORDER BY era DESC LIMIT 1 FOR UPDATE ) AS s
WHERE s.version = g.version ), moved AS ( UPDATE entity_golden.state AS s
SET version = l.version + 1, state_version = l.state_version, state = CAST(l.state AS jsonb), timers = CAST(l.timers AS jsonb), signals = CAST(l.signals AS jsonb), updated_at = clock_timestamp()
FROM locked AS l
WHERE s.ctid = l.place
RETURNING s.type, s.entity_id ), won AS (
SELECT type, entity_id
FROM born
UNION ALL
SELECT type, entity_id
FROM moved )
SELECT type, entity_id
FROM won;

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

-- UniqueKeys._change
UPDATE entity_golden.message
SET rev = rev + 1, args = CAST(r.args AS jsonb), sender = r.sender, reply_to = coalesce(message.reply_to, r.reply_to), due_at = to_timestamp(r.due_at), expires_at = to_timestamp(r.expires_at)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(id text, args text, sender text, reply_to text, due_at double precision, expires_at double precision)
WHERE message.id = ANY(%(ids)s) AND message.id = r.id;

-- UniqueKeys._keep
UPDATE entity_golden.unique_key
SET message_id = r.message_id, begin_at = to_timestamp(r.begin_at), end_at = to_timestamp(r.end_at)
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text, message_id text, begin_at double precision, end_at double precision)
WHERE unique_key.name = ANY(%(ids)s) AND unique_key.name = r.name;

-- UniqueKeys._known
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s) UNION
SELECT id
FROM entity_golden.reply
WHERE id = ANY(%(ids)s);

-- UniqueKeys._lock
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE;

-- UniqueKeys._lock_free
SELECT id
FROM entity_golden.message
WHERE id = ANY(%(ids)s)
ORDER BY id FOR UPDATE SKIP LOCKED;

-- UniqueKeys._look
SELECT m.fingerprint, m.id, CAST(extract(epoch
FROM m.sent_at) AS double precision), CAST(extract(epoch
FROM m.due_at) AS double precision), CAST(extract(epoch
FROM m.expires_at) AS double precision), m.last_failure IS NOT NULL, EXISTS (SELECT 1
FROM entity_golden.in_flight AS f
WHERE f.noted_at >= (SELECT clock_timestamp() + -120.0 * interval '1 second') AND strpos(f.message_ids, m.id) > 0)
FROM entity_golden.message AS m
WHERE m.fingerprint = ANY(%(names)s) AND m.fingerprint > 'u'
ORDER BY m.seq;

-- UniqueKeys._of_window
SELECT message_id
FROM entity_golden.unique_key
WHERE name = %(name)s AND end_at > clock_timestamp();

-- UniqueKeys._remove
DELETE FROM entity_golden.unique_key
WHERE name = ANY(%(names)s);

-- UniqueKeys._take
INSERT INTO entity_golden.unique_key (name, begin_at, end_at)
SELECT r.name, clock_timestamp(), clock_timestamp()
FROM json_to_recordset(CAST(%(rows)s AS json)) AS r(name text)
WHERE true
ORDER BY r.name
ON CONFLICT (name) DO UPDATE
SET end_at = unique_key.end_at
RETURNING name, message_id, CAST(extract(epoch
FROM begin_at) AS double precision), CAST(extract(epoch
FROM end_at) AS double precision), CAST(extract(epoch
FROM clock_timestamp()) AS double precision);

-- UniqueKeys._unused
SELECT name
FROM entity_golden.unique_key
WHERE end_at < (SELECT clock_timestamp() + CAST(%(from_now_s)s AS double precision) * interval '1 second')
ORDER BY end_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED;
