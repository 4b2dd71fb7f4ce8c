-- Who hosts what: runners, and the leases that they hold until they expire or their runner is removed.

CREATE TABLE runner (
    instance TEXT PRIMARY KEY,
    worker TEXT NOT NULL,
    address TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    shard_groups TEXT NOT NULL,
    weight REAL NOT NULL,
    pool TEXT NOT NULL,
    library_version TEXT NOT NULL,
    app_version TEXT,
    machine_id INTEGER NOT NULL UNIQUE,
    process TEXT,
    starved INTEGER NOT NULL DEFAULT 0,
    leaving INTEGER NOT NULL DEFAULT 0,
    refused TEXT NOT NULL DEFAULT '',
    started_at REAL NOT NULL,
    seen_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE lease (
    shard_group TEXT NOT NULL,
    shard INTEGER NOT NULL,
    holder TEXT,
    epoch INTEGER NOT NULL,
    since REAL,
    expires_at REAL,
    PRIMARY KEY (shard_group, shard)
) WITHOUT ROWID;

-- Of no use here, where locks are rows; there so that statements are the same.
ALTER TABLE in_flight ADD COLUMN session INTEGER;
