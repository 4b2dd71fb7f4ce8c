-- Census._loads
SELECT shard_group, shard, count(*), (SELECT entity_now()) - min(coalesce(due_at, sent_at))
FROM message GROUP BY shard_group, shard
ORDER BY shard_group, shard;

-- Census._mail
SELECT 'message', type, operation, 0, count(*)
FROM message GROUP BY type, operation
UNION ALL
SELECT 'dead letter', type, operation, 0, count(*)
FROM dead_letter GROUP BY type, operation
ORDER BY 1, 2, 3;

-- Census._states
SELECT 'state', type, '', state_version, count(*)
FROM state
WHERE state IS NOT NULL GROUP BY type, state_version
ORDER BY type, state_version;

-- Changes._announce
;

-- Changes._answer
INSERT INTO reply (id, fingerprint, type, entity_id, operation, status, finished_at)
SELECT id, fingerprint, type, entity_id, operation, 'cancelled', entity_now()
FROM message
WHERE id = :id;

-- Changes._delete
DELETE FROM message
WHERE id = :id;

-- Changes._lock
SELECT shard_group, shard, blocking, reply_to, operation
FROM message
WHERE id = :id;

-- Changes._reschedule
UPDATE message
SET due_at = coalesce(CAST(:deliver_at AS double precision), entity_now() + CAST(:delay_s AS double precision)), rev = rev + 1
WHERE id = :id AND NOT parked
RETURNING shard_group, shard, due_at <= entity_now();

-- Changes._status
SELECT CASE WHEN parked THEN 'done' ELSE 'pending' END
FROM message
WHERE id = :id
UNION ALL
SELECT status
FROM reply
WHERE id = :id;

-- Commits._announce
;

-- Commits._bury
INSERT INTO dead_letter (id, seq, shard_group, shard, type, entity_id, operation, args, fingerprint, sender, attempt, crashes, reason, failure, sent_at, died_at)
SELECT m.id, m.seq, m.shard_group, m.shard, m.type, m.entity_id, m.operation, m.args, m.fingerprint, m.sender, m.attempt + 1, m.crashes, r.reason, r.failure, m.sent_at, entity_now()
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.reason') AS reason, json_extract(value, '$.failure') AS failure
FROM json_each(:rows)
ORDER BY key) AS r
JOIN message AS m ON m.id = r.id
WHERE m.id IN (SELECT value
FROM json_each(:ids));

-- Commits._delete
DELETE FROM message
WHERE id IN (SELECT value
FROM json_each(:ids));

-- Commits._park
UPDATE message
SET parked = true, rev = rev + 1, due_at = entity_now() + 10000000000.0
WHERE id IN (SELECT value
FROM json_each(:ids));

-- Commits._pending
SELECT id, rev
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids))
ORDER BY id;

-- Commits._retry
UPDATE message
SET attempt = attempt + r.counted, rev = rev + 1, due_at = entity_now() + r.after_s, blocking = r.blocking, last_failure = r.failure
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.after_s') AS after_s, json_extract(value, '$.blocking') AS blocking, json_extract(value, '$.counted') AS counted, json_extract(value, '$.failure') AS failure
FROM json_each(:rows)
ORDER BY key) AS r
WHERE message.id IN (SELECT value
FROM json_each(:ids)) AND message.id = r.id;

-- DeadLetters._delete
DELETE FROM dead_letter
WHERE id IN (SELECT value
FROM json_each(:ids));

-- DeadLetters._delete_replies
DELETE FROM reply
WHERE id IN (SELECT value
FROM json_each(:ids));

-- DeadLetters._lock
SELECT id, seq, shard_group, type, entity_id, operation, args, fingerprint, sender
FROM dead_letter
WHERE id IN (SELECT value
FROM json_each(:ids))
ORDER BY id;

-- DueFloors._first
SELECT m.shard, m.due_at
FROM message AS m
WHERE m.shard_group = :shard_group AND m.shard = :shards AND m.due_at >= :since_epoch_s
ORDER BY m.due_at LIMIT 1;

-- DueFloors._now
SELECT entity_now();

-- Floors._drawn
SELECT last_value - 1 + CAST(is_called AS int)
FROM message_seq;

-- Floors._first
SELECT m.shard, m.seq
FROM message AS m
WHERE m.shard_group = :shard_group AND m.shard = :shards AND m.due_at IS NULL AND m.seq >= 0
ORDER BY m.seq LIMIT 1;

-- Hashing._kept
SELECT value
FROM meta
WHERE name = 'shards_per_group';

-- InFlight._count
UPDATE message
SET crashes = crashes + 1, rev = rev + 1
WHERE id IN (SELECT value
FROM json_each(:ids));

-- InFlight._lock
SELECT id
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids))
ORDER BY id;

-- InFlight._of_tokens
SELECT token, message_ids, session, noted_at, entity_now() - noted_at
FROM in_flight
WHERE token IN (SELECT value
FROM json_each(:tokens));

-- InFlight._others_locked
SELECT token, message_ids
FROM in_flight
WHERE token <> :token
ORDER BY token;

-- InFlight._own_locked
SELECT message_ids
FROM in_flight
WHERE token = :token;

-- InFlight._pending
SELECT id
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids));

-- InFlight._purge
DELETE FROM in_flight
WHERE noted_at < (SELECT entity_now() + CAST(:from_now_s AS double precision));

-- InFlight._remove
DELETE FROM in_flight
WHERE token = :token AND message_ids = :message_ids;

-- InFlight._renew
UPDATE in_flight
SET noted_at = entity_now()
WHERE token = :token;

-- InFlight._replace
UPDATE in_flight
SET message_ids = :message_ids
WHERE token = :token;

-- InFlight._since
SELECT token, message_ids, session, noted_at, entity_now() - noted_at
FROM in_flight
WHERE noted_at >= :since_epoch_s;

-- InFlight._uncount
UPDATE message
SET crashes = crashes - 1
WHERE id IN (SELECT value
FROM json_each(:ids)) AND crashes > 0;

-- InFlight.clear_statement
DELETE FROM in_flight
WHERE token = :token;

-- InFlight.note_statement
INSERT INTO in_flight (token, message_ids, noted_at, session)
VALUES (:token, :message_ids, entity_now(), NULL)
ON CONFLICT (token) DO UPDATE
SET message_ids = excluded.message_ids, noted_at = excluded.noted_at;

-- Leases._give
UPDATE lease
SET holder = NULL, since = NULL, expires_at = NULL
WHERE holder = :holder AND EXISTS (SELECT 1
FROM (SELECT key AS ordinal, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard
FROM json_each(:rows)
ORDER BY key) AS r
WHERE r.shard_group = lease.shard_group AND r.shard = lease.shard);

-- Leases._give_all
UPDATE lease
SET holder = NULL, since = NULL, expires_at = NULL
WHERE holder = :holder;

-- Leases._list
SELECT shard_group, shard, holder, epoch, since
FROM lease
ORDER BY shard_group, shard;

-- Leases._record
INSERT INTO lease AS l (shard_group, shard, holder, epoch, since, expires_at)
SELECT r.shard_group, r.shard, :holder, 1, entity_now(), NULL
FROM (SELECT key AS ordinal, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.shard_group, r.shard
ON CONFLICT (shard_group, shard) DO UPDATE
SET holder = excluded.holder, epoch = l.epoch + 1, since = excluded.since, expires_at = excluded.expires_at
WHERE true
RETURNING shard_group, shard, epoch;

-- Leases._renew
UPDATE lease
SET expires_at = entity_now() + :lease_s
WHERE holder = :holder AND expires_at >= entity_now()
RETURNING shard_group, shard;

-- Leases._take
INSERT INTO lease AS l (shard_group, shard, holder, epoch, since, expires_at)
SELECT r.shard_group, r.shard, :holder, 1, entity_now(), entity_now() + :lease_s
FROM (SELECT key AS ordinal, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.shard_group, r.shard
ON CONFLICT (shard_group, shard) DO UPDATE
SET holder = excluded.holder, epoch = l.epoch + 1, since = excluded.since, expires_at = excluded.expires_at
WHERE (l.holder IS NULL OR l.expires_at < entity_now() OR NOT EXISTS (SELECT 1
FROM runner AS o
WHERE o.instance = l.holder))
RETURNING shard_group, shard, epoch;

-- Mailboxes._candidates
SELECT *
FROM (SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes, 1 AS delayed
FROM message AS m
WHERE m.shard_group = :shard_group AND m.shard = :shards AND m.due_at >= :due_since_epoch_s AND m.due_at <= (SELECT entity_now()) AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.due_at LIMIT :per_shard) AS d
UNION ALL
SELECT *
FROM (SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes, 0
FROM message AS m
WHERE m.shard_group = :shard_group AND m.shard = :shards AND m.seq >= 0 AND m.due_at IS NULL AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.seq LIMIT :per_shard) AS r;

-- Mailboxes._read
SELECT m.id, m.rev, m.seq, m.type, m.entity_id, m.operation, m.args, m.attempt, m.crashes, m.sender, m.reply_to, coalesce(m.expires_at <= (SELECT entity_now()), false), m.lock_key, (SELECT count(*)
FROM in_flight AS f
WHERE f.noted_at >= :since_epoch_s AND f.token <> :token), (SELECT CAST(value AS INTEGER)
FROM meta
WHERE name = 'fence'), CASE WHEN json_valid(m.last_failure) THEN json_extract(m.last_failure, '$.unknown_since_epoch_s') END, (SELECT entity_now())
FROM message AS m
WHERE m.id IN (SELECT value
FROM json_each(:ids)) AND coalesce(m.due_at <= (SELECT entity_now()), true) AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id);

-- Mailboxes._waiting
SELECT r.g, r.n, (SELECT entity_now() - m.sent_at
FROM message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.seq >= r.floor AND m.due_at IS NULL AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.seq LIMIT 1)
FROM (SELECT key AS ordinal, json_extract(value, '$.g') AS g, json_extract(value, '$.n') AS n, json_extract(value, '$.floor') AS floor
FROM json_each(:rows)
ORDER BY key) AS r;

-- Messages._count
SELECT (SELECT count(*)
FROM message
WHERE lock_key = :lock_key AND type = :type AND entity_id = :entity_id AND shard_group = :shard_group AND shard = :shard AND due_at IS NULL) + (SELECT count(*)
FROM message
WHERE lock_key = :lock_key AND type = :type AND entity_id = :entity_id AND due_at IS NOT NULL);

-- Messages._insert
INSERT INTO message (id, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, sent_at, due_at, expires_at)
SELECT r.id, r.shard_group, r.shard, r.type, r.entity_id, r.lock_key, r.operation, r.args, r.fingerprint, :nonce, r.sender, r.reply_to, entity_now(), coalesce(r.deliver_at, entity_now() + r.delay_s), coalesce(r.expires_at, entity_now() + r.expires_s)
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard, json_extract(value, '$.type') AS type, json_extract(value, '$.entity_id') AS entity_id, json_extract(value, '$.lock_key') AS lock_key, json_extract(value, '$.operation') AS operation, json_extract(value, '$.args') AS args, json_extract(value, '$.fingerprint') AS fingerprint, json_extract(value, '$.sender') AS sender, json_extract(value, '$.reply_to') AS reply_to, json_extract(value, '$.deliver_at') AS deliver_at, json_extract(value, '$.delay_s') AS delay_s, json_extract(value, '$.expires_s') AS expires_s, json_extract(value, '$.expires_at') AS expires_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE EXISTS (SELECT 1
FROM meta
WHERE name = 'shards_per_group' AND value = :shards)
ORDER BY r.ordinal
ON CONFLICT (id) DO NOTHING;

-- Messages._insert_certainly
INSERT INTO message (id, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, sent_at, due_at, expires_at)
SELECT r.id, r.shard_group, r.shard, r.type, r.entity_id, r.lock_key, r.operation, r.args, r.fingerprint, :nonce, r.sender, r.reply_to, entity_now(), coalesce(r.deliver_at, entity_now() + r.delay_s), coalesce(r.expires_at, entity_now() + r.expires_s)
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard, json_extract(value, '$.type') AS type, json_extract(value, '$.entity_id') AS entity_id, json_extract(value, '$.lock_key') AS lock_key, json_extract(value, '$.operation') AS operation, json_extract(value, '$.args') AS args, json_extract(value, '$.fingerprint') AS fingerprint, json_extract(value, '$.sender') AS sender, json_extract(value, '$.reply_to') AS reply_to, json_extract(value, '$.deliver_at') AS deliver_at, json_extract(value, '$.delay_s') AS delay_s, json_extract(value, '$.expires_s') AS expires_s, json_extract(value, '$.expires_at') AS expires_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE EXISTS (SELECT 1
FROM meta
WHERE name = 'shards_per_group' AND value = :shards)
ORDER BY r.ordinal
ON CONFLICT (id) DO NOTHING;

-- Messages._look
SELECT id, fingerprint, coalesce(nonce = :nonce, false), 1
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids))
UNION ALL
SELECT id, fingerprint, false, 0
FROM reply
WHERE id IN (SELECT value
FROM json_each(:ids));

-- Messages._pending_ids
SELECT id
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids));

-- Messages._show_all
SELECT id, type, entity_id, operation, args, shard_group, shard, attempt, crashes, sent_at, due_at, last_failure
FROM message
ORDER BY seq LIMIT :limit;

-- Messages._show_entity
SELECT id, type, entity_id, operation, args, shard_group, shard, attempt, crashes, sent_at, due_at, last_failure
FROM message
WHERE shard_group = :shard_group AND shard = :shard AND lock_key = :lock_key AND type = :type AND entity_id = :entity_id
ORDER BY seq LIMIT :limit;

-- Messages._show_shard
SELECT id, type, entity_id, operation, args, shard_group, shard, attempt, crashes, sent_at, due_at, last_failure
FROM message
WHERE shard_group = :shard_group AND shard = :shard
ORDER BY seq LIMIT :limit;

-- Messages._withdraw_finished
DELETE FROM message
WHERE id IN (SELECT value
FROM json_each(:ids)) AND EXISTS (SELECT 1
FROM reply
WHERE reply.id = message.id);

-- Moments._look
WITH c AS MATERIALIZED (SELECT entity_now() AS now, entity_now() + :horizon_s AS horizon)
SELECT r.g, r.n, c.now, (SELECT m.due_at
FROM message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.due_at >= r.since AND m.due_at <= c.now AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.due_at DESC LIMIT 1), (SELECT m.due_at
FROM message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.due_at > c.now AND m.due_at <= c.horizon
ORDER BY m.due_at LIMIT 1)
FROM (SELECT key AS ordinal, json_extract(value, '$.g') AS g, json_extract(value, '$.n') AS n, json_extract(value, '$.since') AS since
FROM json_each(:rows)
ORDER BY key) AS r
CROSS
JOIN c;

-- Moments._tell
;

-- NoteFloor._now
SELECT entity_now();

-- NoteFloor._since
SELECT token, noted_at
FROM in_flight
WHERE noted_at >= :since_epoch_s;

-- Replies._delete
DELETE FROM reply
WHERE id IN (SELECT value
FROM json_each(:ids));

-- Replies._old
SELECT id
FROM reply
WHERE finished_at < (SELECT entity_now() + CAST(:age_s AS double precision)) AND (status <> 'dead' OR (SELECT d.id
FROM dead_letter AS d
WHERE d.id = reply.id) IS NULL)
ORDER BY finished_at LIMIT :limit;

-- Replies._read
SELECT id, type, entity_id, operation, status, result, failure, finished_at
FROM reply
WHERE id IN (SELECT value
FROM json_each(:ids));

-- Replies._write
INSERT INTO reply (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at)
SELECT m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, r.result, r.failure, entity_now()
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.status') AS status, json_extract(value, '$.result') AS result, json_extract(value, '$.failure') AS failure
FROM json_each(:rows)
ORDER BY key) AS r
JOIN message AS m ON m.id = r.id
WHERE m.id IN (SELECT value
FROM json_each(:ids));

-- Reshard._drop_leases
DELETE FROM lease
WHERE shard >= :shards;

-- Reshard._forget_meta
DELETE FROM meta
WHERE name = :name;

-- Reshard._free_leases
UPDATE lease
SET holder = NULL, since = NULL, expires_at = NULL;

-- Reshard._meta
SELECT value
FROM meta
WHERE name = :name;

-- Reshard._move_dead_letter
UPDATE dead_letter
SET shard = r.shard
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.shard') AS shard
FROM json_each(:rows)
ORDER BY key) AS r
WHERE dead_letter.id = r.id;

-- Reshard._move_message
UPDATE message
SET shard = r.shard
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.shard') AS shard
FROM json_each(:rows)
ORDER BY key) AS r
WHERE message.id = r.id;

-- Reshard._page_dead_letter
SELECT id, shard_group, shard, entity_id
FROM dead_letter
WHERE id > :after
ORDER BY id LIMIT :limit;

-- Reshard._page_message
SELECT id, shard_group, shard, entity_id
FROM message
WHERE id > :after
ORDER BY id LIMIT :limit;

-- Reshard._set_meta
INSERT INTO meta (name, value)
VALUES (:name, :value)
ON CONFLICT (name) DO UPDATE
SET value = excluded.value;

-- Runners._confirm
UPDATE runner
SET seen_at = entity_now(), starved = :starved, leaving = :leaving, refused = :refused
WHERE instance = :instance;

-- Runners._insert
INSERT INTO runner (instance, worker, address, host, pid, shard_groups, weight, pool, library_version, app_version, machine_id, process, started_at, seen_at)
VALUES (:instance, :worker, :address, :host, :pid, :shard_groups, :weight, :pool, :library_version, :app_version, :machine_id, :process, entity_now(), entity_now())
ON CONFLICT DO NOTHING;

-- Runners._is_registered
SELECT count(*)
FROM runner
WHERE worker = :worker;

-- Runners._list
SELECT instance, worker, address, host, pid, shard_groups, weight, pool, library_version, app_version, machine_id, started_at, seen_at, entity_now() - seen_at, starved, leaving, process, refused
FROM runner
ORDER BY address, instance;

-- Runners._machine_ids
SELECT machine_id
FROM runner;

-- Runners._remove
DELETE FROM runner
WHERE instance = :instance AND abs(seen_at - :seen_at) < 0.00001;

-- Runners._remove_worker
DELETE FROM runner
WHERE worker = :worker;

-- Runners._withdraw
DELETE FROM runner
WHERE instance = :instance;

-- Schedules._due
SELECT name, definition, generation, origin, paused, tick, tick_at, look_at, last_tick, last_fired_at, last_message_id, fired, skipped, failure
FROM schedule
WHERE NOT paused AND look_at <= (SELECT entity_now())
ORDER BY look_at LIMIT :limit;

-- Schedules._first_look
SELECT look_at - entity_now()
FROM schedule
WHERE NOT paused AND look_at IS NOT NULL
ORDER BY look_at LIMIT 1;

-- Schedules._lock
SELECT name, generation, tick, last_message_id
FROM schedule
WHERE name IN (SELECT value
FROM json_each(:names)) AND NOT paused
ORDER BY name;

-- Schedules._move
UPDATE schedule
SET tick = r.tick, tick_at = r.tick_at, look_at = r.look_at, last_tick = coalesce(r.last_tick, schedule.last_tick), last_fired_at = CASE WHEN r.fired > 0 THEN entity_now() ELSE last_fired_at END, last_message_id = coalesce(r.message_id, last_message_id), fired = schedule.fired + r.fired, skipped = schedule.skipped + r.skipped, failure = r.failure
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name, json_extract(value, '$.last_tick') AS last_tick, json_extract(value, '$.message_id') AS message_id, json_extract(value, '$.fired') AS fired, json_extract(value, '$.skipped') AS skipped, json_extract(value, '$.failure') AS failure, json_extract(value, '$.tick') AS tick, json_extract(value, '$.tick_at') AS tick_at, json_extract(value, '$.look_at') AS look_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE schedule.name IN (SELECT value
FROM json_each(:ids)) AND schedule.name = r.name;

-- Schedules._now
SELECT entity_now();

-- Schedules._one
SELECT name, definition, generation, origin, paused, tick, tick_at, look_at, last_tick, last_fired_at, last_message_id, fired, skipped, failure
FROM schedule
WHERE name = :name;

-- Schedules._page
SELECT name, definition, generation, origin, paused, tick, tick_at, look_at, last_tick, last_fired_at, last_message_id, fired, skipped, failure
FROM schedule
WHERE name > :after
ORDER BY name LIMIT :limit;

-- Schedules._pause
UPDATE schedule
SET paused = true
WHERE name = :name;

-- Schedules._put
INSERT INTO schedule (name, definition, generation, origin, paused, tick, tick_at, look_at, created_at)
SELECT r.name, r.definition, r.generation, r.origin, r.paused, r.tick, r.tick_at, r.look_at, entity_now()
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name, json_extract(value, '$.definition') AS definition, json_extract(value, '$.generation') AS generation, json_extract(value, '$.origin') AS origin, json_extract(value, '$.paused') AS paused, json_extract(value, '$.tick') AS tick, json_extract(value, '$.tick_at') AS tick_at, json_extract(value, '$.look_at') AS look_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.name
ON CONFLICT (name) DO UPDATE
SET definition = excluded.definition, origin = excluded.origin, tick = CASE WHEN schedule.generation = excluded.generation THEN schedule.tick ELSE excluded.tick END, tick_at = CASE WHEN schedule.generation = excluded.generation THEN schedule.tick_at ELSE excluded.tick_at END, look_at = CASE WHEN schedule.generation = excluded.generation THEN schedule.look_at ELSE excluded.look_at END, generation = excluded.generation, failure = NULL
WHERE schedule.generation <> excluded.generation OR schedule.definition <> excluded.definition OR schedule.origin <> excluded.origin;

-- Schedules._remove
DELETE FROM schedule
WHERE name = :name;

-- Schedules._resume
UPDATE schedule
SET paused = false, tick = r.tick, tick_at = r.tick_at, look_at = r.look_at
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name, json_extract(value, '$.generation') AS generation, json_extract(value, '$.tick') AS tick, json_extract(value, '$.tick_at') AS tick_at, json_extract(value, '$.look_at') AS look_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE schedule.name = r.name AND paused AND schedule.generation = r.generation;

-- Schedules._triggered
UPDATE schedule
SET last_message_id = :message_id
WHERE name = :name;

-- Schema._applied
SELECT number, checksum
FROM migration
ORDER BY number;

-- Schema._create_record
CREATE TABLE IF NOT EXISTS migration (number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at REAL NOT NULL);

-- Schema._keep
INSERT INTO meta (name, value)
VALUES (:name, :value)
ON CONFLICT (name) DO NOTHING;

-- Schema._keep_shards
;

-- Schema._meta
SELECT name, value
FROM meta;

-- Schema._record
INSERT INTO migration (number, name, checksum, applied_at)
VALUES (:number, :name, :checksum, entity_now());

-- SignalRows._complete
UPDATE message
SET args = json_set(args, '$.outcome', json(:outcome)), due_at = entity_now(), rev = rev + 1, nonce = :nonce
WHERE id = :id AND operation = 'entity.signal' AND attempt = 0 AND CASE WHEN json_valid(args) THEN json_extract(args, '$.outcome') END IS NULL AND due_at > entity_now()
RETURNING id;

-- SignalRows._list
SELECT type, entity_id, args, sent_at, due_at
FROM message
WHERE operation = 'entity.signal' AND attempt = 0 AND CASE WHEN json_valid(args) THEN json_extract(args, '$.outcome') END IS NULL AND (type, entity_id) > (:after_type, :after_id) AND (CAST(:type AS text) IS NULL OR (type = :type AND entity_id = :entity_id))
ORDER BY type, entity_id, id LIMIT :limit;

-- SignalRows._secret
SELECT value
FROM meta
WHERE name = 'signal_secret';

-- Singletons._ask
UPDATE singleton
SET asked_by = :worker
WHERE name = :name AND epoch = :epoch;

-- Singletons._beat
UPDATE singleton
SET heartbeat_at = entity_now()
WHERE name = :name AND epoch = :epoch;

-- Singletons._begin
UPDATE singleton
SET epoch = epoch + 1, pid = :pid, started_at = entity_now(), heartbeat_at = entity_now(), restart_wanted = false, restarts = restarts + :again
WHERE name = :name AND epoch = :epoch AND holder = :worker
RETURNING epoch;

-- Singletons._confirm
UPDATE singleton
SET expires_at = entity_now() + :held_for_s
WHERE holder = :worker AND EXISTS (SELECT 1
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name, json_extract(value, '$.epoch') AS epoch
FROM json_each(:rows)
ORDER BY key) AS r
WHERE r.name = singleton.name AND r.epoch = singleton.epoch) AND expires_at >= entity_now();

-- Singletons._declare
INSERT INTO singleton AS s (name, shard_group, heartbeat_interval_s)
SELECT r.name, r.shard_group, r.heartbeat_interval_s
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.heartbeat_interval_s') AS heartbeat_interval_s
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.name
ON CONFLICT (name) DO UPDATE
SET shard_group = excluded.shard_group, heartbeat_interval_s = excluded.heartbeat_interval_s
WHERE s.shard_group <> excluded.shard_group OR s.heartbeat_interval_s <> excluded.heartbeat_interval_s;

-- Singletons._end
UPDATE singleton
SET pid = NULL
WHERE name = :name AND epoch = :epoch AND holder = :worker;

-- Singletons._fail
UPDATE singleton
SET pid = NULL, last_failure = :failure, last_failure_at = entity_now()
WHERE name = :name AND epoch = :epoch AND holder = :worker;

-- Singletons._give
UPDATE singleton
SET holder = NULL, since = NULL, expires_at = NULL, pid = NULL, handed_over = true
WHERE name = :name AND epoch = :epoch AND holder = :worker;

-- Singletons._list
SELECT name, shard_group, holder, address, epoch, since, pid, started_at, heartbeat_at, entity_now() - heartbeat_at, heartbeat_interval_s, restarts, last_failure, last_failure_at, wanted
FROM singleton
ORDER BY name;

-- Singletons._look
SELECT name, number, epoch, holder, (holder IS NULL OR expires_at IS NULL OR expires_at < entity_now() OR expires_at > entity_now() + successor_waits_s), handed_over, successor_waits_s, asked_by, (SELECT min(o.worker)
FROM runner AS o
WHERE o.worker = s.wanted AND NOT o.leaving), avoided, restart_wanted
FROM singleton AS s
WHERE name IN (SELECT value
FROM json_each(:names))
ORDER BY name;

-- Singletons._move
UPDATE singleton
SET wanted = :wanted, avoided = :avoided
WHERE name = :name;

-- Singletons._restart
UPDATE singleton
SET restart_wanted = true
WHERE name = :name;

-- Singletons._take
UPDATE singleton
SET holder = :worker, address = :address, epoch = epoch + 1, since = entity_now(), expires_at = entity_now() + :held_for_s, handed_over = false, asked_by = NULL, successor_waits_s = :successor_waits_s, pid = NULL, avoided = CASE WHEN avoided = :worker THEN NULL ELSE avoided END
WHERE name = :name AND epoch = :epoch
RETURNING epoch;

-- Singletons._take_unheld
UPDATE singleton
SET holder = :worker, address = :address, epoch = epoch + 1, since = entity_now(), expires_at = entity_now() + :held_for_s, handed_over = false, asked_by = NULL, successor_waits_s = :successor_waits_s, pid = NULL, avoided = CASE WHEN avoided = :worker THEN NULL ELSE avoided END
WHERE name = :name AND epoch = :epoch AND (holder IS NULL OR expires_at IS NULL OR expires_at < entity_now() OR expires_at > entity_now() + successor_waits_s)
RETURNING epoch;

-- States._list
SELECT s.type, s.entity_id, s.version, s.state_version, s.state
FROM state AS s
WHERE s.state IS NOT NULL AND (s.type, s.entity_id) > (:after_type, :after_id) AND (CAST(:type AS text) IS NULL OR s.type = :type)
ORDER BY s.type, s.entity_id LIMIT :limit;

-- States._of_type
SELECT s.type, s.entity_id, s.version, s.state_version, s.state, s.timers, s.signals
FROM state AS s
WHERE s.type = :type AND s.entity_id IN (SELECT value
FROM json_each(:ids));

-- States._write
INSERT INTO state (type, entity_id, version, state_version, state, timers, signals, updated_at)
SELECT r.type, r.entity_id, r.version + 1, r.state_version, r.state, r.timers, r.signals, entity_now()
FROM (SELECT key AS ordinal, json_extract(value, '$.type') AS type, json_extract(value, '$.entity_id') AS entity_id, json_extract(value, '$.version') AS version, json_extract(value, '$.state_version') AS state_version, json_extract(value, '$.state') AS state, json_extract(value, '$.timers') AS timers, json_extract(value, '$.signals') AS signals
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.type, r.entity_id
ON CONFLICT (type, entity_id) DO UPDATE
SET version = excluded.version, state_version = excluded.state_version, state = excluded.state, timers = excluded.timers, signals = excluded.signals, updated_at = excluded.updated_at
WHERE state.version = excluded.version - 1
RETURNING type, entity_id;

-- Statistics._bytes
SELECT page_count * page_size
FROM pragma_page_count(), pragma_page_size();

-- Statistics._dead
SELECT count(*)
FROM dead_letter;

-- Statistics._mail
SELECT count(CASE WHEN (due_at IS NULL OR due_at <= (SELECT entity_now())) THEN 1 END), count(CASE WHEN NOT (due_at IS NULL OR due_at <= (SELECT entity_now())) THEN 1 END), count(CASE WHEN last_failure IS NOT NULL THEN 1 END), max(CASE WHEN (due_at IS NULL OR due_at <= (SELECT entity_now())) THEN (SELECT entity_now()) - coalesce(due_at, sent_at) END)
FROM message;

-- Statistics._replies
SELECT status, count(*)
FROM reply GROUP BY status
ORDER BY status;

-- Statistics._tables
SELECT 'dead_letter', count(*), NULL, NULL
FROM dead_letter
UNION ALL
SELECT 'message', count(*), NULL, NULL
FROM message
UNION ALL
SELECT 'reply', count(*), NULL, NULL
FROM reply
UNION ALL
SELECT 'state', count(*), NULL, NULL
FROM state;

-- UniqueKeys._change
UPDATE message
SET rev = rev + 1, args = r.args, sender = r.sender, reply_to = coalesce(message.reply_to, r.reply_to), due_at = r.due_at, expires_at = r.expires_at
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.args') AS args, json_extract(value, '$.sender') AS sender, json_extract(value, '$.reply_to') AS reply_to, json_extract(value, '$.due_at') AS due_at, json_extract(value, '$.expires_at') AS expires_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE message.id IN (SELECT value
FROM json_each(:ids)) AND message.id = r.id;

-- UniqueKeys._keep
UPDATE unique_key
SET message_id = r.message_id, begin_at = r.begin_at, end_at = r.end_at
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name, json_extract(value, '$.message_id') AS message_id, json_extract(value, '$.begin_at') AS begin_at, json_extract(value, '$.end_at') AS end_at
FROM json_each(:rows)
ORDER BY key) AS r
WHERE unique_key.name IN (SELECT value
FROM json_each(:ids)) AND unique_key.name = r.name;

-- UniqueKeys._known
SELECT id
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids)) UNION
SELECT id
FROM reply
WHERE id IN (SELECT value
FROM json_each(:ids));

-- UniqueKeys._lock
SELECT id
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids))
ORDER BY id;

-- UniqueKeys._lock_free
SELECT id
FROM message
WHERE id IN (SELECT value
FROM json_each(:ids))
ORDER BY id;

-- UniqueKeys._look
SELECT m.fingerprint, m.id, m.sent_at, m.due_at, m.expires_at, m.last_failure IS NOT NULL, EXISTS (SELECT 1
FROM in_flight AS f
WHERE f.noted_at >= (SELECT entity_now() + -120.0) AND instr(f.message_ids, m.id) > 0)
FROM message AS m
WHERE m.fingerprint IN (SELECT value
FROM json_each(:names)) AND m.fingerprint > 'u'
ORDER BY m.seq;

-- UniqueKeys._of_window
SELECT message_id
FROM unique_key
WHERE name = :name AND end_at > entity_now();

-- UniqueKeys._remove
DELETE FROM unique_key
WHERE name IN (SELECT value
FROM json_each(:names));

-- UniqueKeys._take
INSERT INTO unique_key (name, begin_at, end_at)
SELECT r.name, entity_now(), entity_now()
FROM (SELECT key AS ordinal, json_extract(value, '$.name') AS name
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.name
ON CONFLICT (name) DO UPDATE
SET end_at = unique_key.end_at
RETURNING name, message_id, begin_at, end_at, entity_now();

-- UniqueKeys._unused
SELECT name
FROM unique_key
WHERE end_at < (SELECT entity_now() + CAST(:from_now_s AS double precision))
ORDER BY end_at LIMIT :limit;
