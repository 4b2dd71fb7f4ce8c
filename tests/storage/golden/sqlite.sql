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
SELECT shard_group, shard, blocking, reply_to
FROM message
WHERE id = :id;

-- Changes._reschedule
UPDATE message
SET due_at = coalesce(CAST(:deliver_at AS double precision), entity_now() + CAST(:delay_s AS double precision)), rev = rev + 1
WHERE id = :id
RETURNING shard_group, shard, due_at <= entity_now();

-- Changes._status
SELECT 'pending'
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
JOIN message AS m ON m.id = r.id;

-- Commits._delete
DELETE FROM message
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
WHERE message.id = r.id;

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

-- Floors._drawn
SELECT last_value - 1 + CAST(is_called AS int)
FROM message_seq;

-- Floors._first
SELECT m.shard, m.seq
FROM message AS m
WHERE m.shard_group = :shard_group AND m.shard = :shards AND m.due_at IS NULL AND m.seq >= 0
ORDER BY m.seq LIMIT 1;

-- InFlight._all
SELECT token, message_ids
FROM in_flight;

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

-- InFlight._others
SELECT token, message_ids
FROM in_flight
WHERE token <> :token;

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
WHERE noted_at < entity_now() - :older_than_s;

-- InFlight._remove
DELETE FROM in_flight
WHERE token = :token AND message_ids = :message_ids;

-- InFlight._replace
UPDATE in_flight
SET message_ids = :message_ids
WHERE token = :token;

-- InFlight._uncount
UPDATE message
SET crashes = crashes - 1
WHERE id IN (SELECT value
FROM json_each(:ids)) AND crashes > 0;

-- InFlight.clear_statement
DELETE FROM in_flight
WHERE token = :token;

-- InFlight.note_statement
INSERT INTO in_flight (token, message_ids, noted_at)
VALUES (:token, :message_ids, entity_now())
ON CONFLICT (token) DO UPDATE
SET message_ids = excluded.message_ids, noted_at = excluded.noted_at;

-- Mailboxes._candidates
SELECT *
FROM (SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes, 1 AS delayed
FROM message AS m
WHERE m.shard_group = :shard_group AND m.shard = :shards AND m.due_at <= (SELECT entity_now()) AND NOT EXISTS (SELECT 1
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
WHERE f.token <> :token), (SELECT CAST(value AS INTEGER)
FROM meta
WHERE name = 'fence'), CASE WHEN json_valid(m.last_failure) THEN json_extract(m.last_failure, '$.unknown_since_epoch_s') END, (SELECT entity_now())
FROM message AS m
WHERE m.id IN (SELECT value
FROM json_each(:ids)) AND coalesce(m.due_at <= (SELECT entity_now()), true) AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id);

-- Mailboxes._waiting_due
SELECT r.g, r.n, (SELECT entity_now() - m.due_at
FROM message AS m
WHERE m.shard_group = r.g AND m.shard = r.n AND m.due_at <= (SELECT entity_now()) AND NOT EXISTS (SELECT 1
FROM message AS b
WHERE b.blocking AND b.lock_key = m.lock_key AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)
ORDER BY m.due_at LIMIT 1)
FROM (SELECT key AS ordinal, json_extract(value, '$.g') AS g, json_extract(value, '$.n') AS n, json_extract(value, '$.floor') AS floor
FROM json_each(:rows)
ORDER BY key) AS r;

-- Mailboxes._waiting_ready
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
WHERE shard_group = :shard_group AND shard = :shard AND lock_key = :lock_key AND type = :type AND entity_id = :entity_id AND due_at IS NULL) + (SELECT count(*)
FROM message
WHERE shard_group = :shard_group AND shard = :shard AND lock_key = :lock_key AND type = :type AND entity_id = :entity_id AND due_at IS NOT NULL);

-- Messages._insert
INSERT INTO message (id, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, sent_at, due_at, expires_at)
SELECT r.id, r.shard_group, r.shard, r.type, r.entity_id, r.lock_key, r.operation, r.args, r.fingerprint, :nonce, r.sender, r.reply_to, entity_now(), coalesce(r.deliver_at, entity_now() + r.delay_s), entity_now() + r.expires_s
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard, json_extract(value, '$.type') AS type, json_extract(value, '$.entity_id') AS entity_id, json_extract(value, '$.lock_key') AS lock_key, json_extract(value, '$.operation') AS operation, json_extract(value, '$.args') AS args, json_extract(value, '$.fingerprint') AS fingerprint, json_extract(value, '$.sender') AS sender, json_extract(value, '$.reply_to') AS reply_to, json_extract(value, '$.deliver_at') AS deliver_at, json_extract(value, '$.delay_s') AS delay_s, json_extract(value, '$.expires_s') AS expires_s
FROM json_each(:rows)
ORDER BY key) AS r
WHERE EXISTS (SELECT 1
FROM meta
WHERE name = 'shards_per_group' AND value = :shards)
ORDER BY r.ordinal
ON CONFLICT (id) DO NOTHING;

-- Messages._insert_certainly
INSERT INTO message (id, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, nonce, sender, reply_to, sent_at, due_at, expires_at)
SELECT r.id, r.shard_group, r.shard, r.type, r.entity_id, r.lock_key, r.operation, r.args, r.fingerprint, :nonce, r.sender, r.reply_to, entity_now(), coalesce(r.deliver_at, entity_now() + r.delay_s), entity_now() + r.expires_s
FROM (SELECT key AS ordinal, json_extract(value, '$.id') AS id, json_extract(value, '$.shard_group') AS shard_group, json_extract(value, '$.shard') AS shard, json_extract(value, '$.type') AS type, json_extract(value, '$.entity_id') AS entity_id, json_extract(value, '$.lock_key') AS lock_key, json_extract(value, '$.operation') AS operation, json_extract(value, '$.args') AS args, json_extract(value, '$.fingerprint') AS fingerprint, json_extract(value, '$.sender') AS sender, json_extract(value, '$.reply_to') AS reply_to, json_extract(value, '$.deliver_at') AS deliver_at, json_extract(value, '$.delay_s') AS delay_s, json_extract(value, '$.expires_s') AS expires_s
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

-- Messages._shards_kept
SELECT value
FROM meta
WHERE name = 'shards_per_group';

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
JOIN message AS m ON m.id = r.id;

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

-- Schema._meta
SELECT name, value
FROM meta;

-- Schema._record
INSERT INTO migration (number, name, checksum, applied_at)
VALUES (:number, :name, :checksum, entity_now());

-- States._list
SELECT s.type, s.entity_id, s.version, s.state_version, s.state
FROM state AS s
WHERE s.state IS NOT NULL AND (s.type, s.entity_id) > (:after_type, :after_id) AND (CAST(:type AS text) IS NULL OR s.type = :type)
ORDER BY s.type, s.entity_id LIMIT :limit;

-- States._of_type
SELECT s.type, s.entity_id, s.version, s.state_version, s.state
FROM state AS s
WHERE s.type = :type AND s.entity_id IN (SELECT value
FROM json_each(:ids));

-- States._write
INSERT INTO state (type, entity_id, version, state_version, state, updated_at)
SELECT r.type, r.entity_id, r.version + 1, r.state_version, r.state, entity_now()
FROM (SELECT key AS ordinal, json_extract(value, '$.type') AS type, json_extract(value, '$.entity_id') AS entity_id, json_extract(value, '$.version') AS version, json_extract(value, '$.state_version') AS state_version, json_extract(value, '$.state') AS state
FROM json_each(:rows)
ORDER BY key) AS r
WHERE true
ORDER BY r.type, r.entity_id
ON CONFLICT (type, entity_id) DO UPDATE
SET version = excluded.version, state_version = excluded.state_version, state = excluded.state, updated_at = excluded.updated_at
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
