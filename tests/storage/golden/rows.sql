-- ExpiringRowLocks._attend
INSERT INTO entity_golden.lock (kind, key, token, expires_at)
SELECT 'attention', k, %(token)s, clock_timestamp() + %(lease_s)s * interval '1 second'
FROM unnest(CAST(%(keys)s AS text[])) AS k
ON CONFLICT (key, token)
WHERE kind = 'attention' DO UPDATE
SET expires_at = excluded.expires_at;

-- ExpiringRowLocks._attended
SELECT DISTINCT key
FROM entity_golden.lock
WHERE kind = 'attention' AND key = ANY(%(keys)s) AND expires_at >= clock_timestamp();

-- ExpiringRowLocks._claim
INSERT INTO entity_golden.lock AS held (kind, key, token, expires_at)
SELECT 'claim', k, %(token)s, clock_timestamp() + %(lease_s)s * interval '1 second'
FROM unnest(CAST(%(keys)s AS text[])) AS k
WHERE NOT EXISTS (SELECT 1
FROM entity_golden.lock AS l
WHERE l.kind = 'claim' AND l.key = k AND l.expires_at >= clock_timestamp())
ORDER BY k COLLATE "C"
ON CONFLICT (key)
WHERE kind = 'claim' DO UPDATE
SET token = excluded.token, expires_at = excluded.expires_at
WHERE held.expires_at < clock_timestamp()
RETURNING key;

-- ExpiringRowLocks._extend
WITH mine AS (SELECT kind, key, token
FROM entity_golden.lock AS m
WHERE m.token = ANY(%(tokens)s) AND m.expires_at >= clock_timestamp()
ORDER BY kind, key, token FOR UPDATE) UPDATE entity_golden.lock AS l
SET expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
FROM mine
WHERE l.token = ANY(%(tokens)s) AND l.expires_at >= clock_timestamp() AND l.kind = mine.kind AND l.key = mine.key AND l.token = mine.token;

-- ExpiringRowLocks._forsake
DELETE FROM entity_golden.lock
WHERE kind = 'attention' AND key = ANY(%(keys)s) AND token = %(token)s;

-- ExpiringRowLocks._is_attended
SELECT EXISTS (SELECT 1
FROM entity_golden.lock
WHERE kind = 'attention' AND key = %(shard)s AND expires_at >= clock_timestamp());

-- ExpiringRowLocks._is_claimed
SELECT EXISTS (SELECT 1
FROM entity_golden.lock
WHERE kind = 'claim' AND key = %(key)s AND expires_at >= clock_timestamp());

-- ExpiringRowLocks._release
WITH mine AS (SELECT kind, key, token
FROM entity_golden.lock AS m
WHERE m.kind = 'claim' AND m.key = ANY(%(keys)s) AND m.token = %(token)s
ORDER BY kind, key, token FOR UPDATE) DELETE FROM entity_golden.lock AS l
USING mine
WHERE l.kind = 'claim' AND l.key = ANY(%(keys)s) AND l.token = %(token)s AND l.kind = mine.kind AND l.key = mine.key AND l.token = mine.token;

-- ExpiringRowLocks._release_all
WITH mine AS (SELECT kind, key, token
FROM entity_golden.lock AS m
WHERE m.token = %(token)s
ORDER BY kind, key, token FOR UPDATE) DELETE FROM entity_golden.lock AS l
USING mine
WHERE l.token = %(token)s AND l.kind = mine.kind AND l.key = mine.key AND l.token = mine.token;

-- ExpiringRowLocks._remove_expired
WITH mine AS (SELECT kind, key, token
FROM entity_golden.lock AS m
WHERE m.expires_at < clock_timestamp()
ORDER BY kind, key, token FOR UPDATE SKIP LOCKED) DELETE FROM entity_golden.lock AS l
USING mine
WHERE l.expires_at < clock_timestamp() AND l.kind = mine.kind AND l.key = mine.key AND l.token = mine.token;

-- InFlight.note_statement
INSERT INTO entity_golden.in_flight (token, message_ids, noted_at, session)
VALUES (%(token)s, %(message_ids)s, clock_timestamp(), NULL)
ON CONFLICT (token) DO UPDATE
SET message_ids = excluded.message_ids, noted_at = excluded.noted_at;
