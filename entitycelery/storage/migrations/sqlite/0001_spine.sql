-- Tables of one cluster. Pending work only is in message, so that it stays small; every end is a row of reply.
-- Instants are seconds since 1970-01-01T00:00:00Z.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO meta (name, value) VALUES ('fence', '0');

-- due_at is null for mail that is due at once: claims read it by seq; delayed mail and retries are read by due_at.
CREATE TABLE message (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    rev INTEGER NOT NULL DEFAULT 0,
    shard_group TEXT NOT NULL,
    shard INTEGER NOT NULL,
    type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    lock_key INTEGER NOT NULL,
    operation TEXT NOT NULL,
    args TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    nonce TEXT,
    sender TEXT,
    reply_to TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    blocking INTEGER NOT NULL DEFAULT 0,
    sent_at REAL NOT NULL,
    due_at REAL,
    expires_at REAL,
    last_failure TEXT
);
CREATE INDEX message_ready ON message (shard_group, shard, seq) WHERE due_at IS NULL;
CREATE INDEX message_due ON message (shard_group, shard, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX message_blocking ON message (lock_key) WHERE blocking;

CREATE TABLE reply (
    id TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    operation TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed', 'expired', 'cancelled', 'dead')),
    result TEXT,
    failure TEXT,
    finished_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX reply_finished ON reply (finished_at);

-- A deleted entity leaves its row with a null state, so that its version goes on.
CREATE TABLE state (
    type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    state_version INTEGER NOT NULL,
    state TEXT,
    updated_at REAL NOT NULL,
    PRIMARY KEY (type, entity_id)
) WITHOUT ROWID;

CREATE TABLE dead_letter (
    id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    shard_group TEXT NOT NULL,
    shard INTEGER NOT NULL,
    type TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    operation TEXT NOT NULL,
    args TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    sender TEXT,
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    reason TEXT NOT NULL,
    failure TEXT NOT NULL,
    sent_at REAL NOT NULL,
    died_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX dead_letter_entity ON dead_letter (type, entity_id);

-- What each drain is about to run. A row whose drain lost its claims names the messages that may have killed it.
CREATE TABLE in_flight (
    token TEXT PRIMARY KEY,
    message_ids TEXT NOT NULL,
    noted_at REAL NOT NULL
) WITHOUT ROWID;

-- Claims and attention, which PostgreSQL keeps as session locks. The process that holds a row holds a lock on its
-- own file beside the database, so a dead holder is known at once.
CREATE TABLE lock (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    token TEXT NOT NULL,
    process TEXT NOT NULL,
    PRIMARY KEY (kind, key, token)
) WITHOUT ROWID;
