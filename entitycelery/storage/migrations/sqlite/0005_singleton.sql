-- Singletons: who runs each until it expires, how it is, and what operators want of it.

CREATE TABLE singleton (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    shard_group TEXT NOT NULL,
    holder TEXT,
    address TEXT,
    epoch INTEGER NOT NULL DEFAULT 0,
    since REAL,
    expires_at REAL,
    handed_over INTEGER NOT NULL DEFAULT 1,
    successor_waits_s REAL NOT NULL DEFAULT 0,
    asked_by TEXT,
    wanted TEXT,
    avoided TEXT,
    restart_wanted INTEGER NOT NULL DEFAULT 0,
    pid INTEGER,
    started_at REAL,
    heartbeat_at REAL,
    heartbeat_interval_s REAL NOT NULL,
    restarts INTEGER NOT NULL DEFAULT 0,
    last_failure TEXT,
    last_failure_at REAL
);
