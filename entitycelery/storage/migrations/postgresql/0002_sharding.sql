-- Who hosts what. On PostgreSQL with session locks the locks decide and `lease` only says so; elsewhere its rows do.

CREATE TABLE runner (
    instance text COLLATE "C" PRIMARY KEY,
    worker text COLLATE "C" NOT NULL,
    address text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    shard_groups text NOT NULL,
    weight double precision NOT NULL,
    pool text NOT NULL,
    library_version text NOT NULL,
    app_version text,
    machine_id integer NOT NULL UNIQUE,
    process text COLLATE "C",
    starved boolean NOT NULL DEFAULT false,
    leaving boolean NOT NULL DEFAULT false,
    refused text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE lease (
    shard_group text COLLATE "C" NOT NULL,
    shard integer NOT NULL,
    holder text COLLATE "C",
    epoch bigint NOT NULL,
    since timestamptz,
    expires_at timestamptz,
    PRIMARY KEY (shard_group, shard)
) WITH (fillfactor = 50);

-- The database session of a drain, and since when it has given no sign of life: a frozen process keeps its locks.
ALTER TABLE in_flight ADD COLUMN session integer;

-- Claims and attention where they are rows: behind a transaction pooler. A claim has one holder, attention may have many.
CREATE UNLOGGED TABLE lock (
    kind text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    token text COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE UNIQUE INDEX lock_claim ON lock (key) WHERE kind = 'claim';
CREATE UNIQUE INDEX lock_attention ON lock (key, token) WHERE kind = 'attention';
CREATE INDEX lock_token ON lock (token);

-- The number of shards per group once more, as inserts compare with it: a sequence is read as it is now, whatever the
-- snapshot of the transaction, so no sender that slept through a reshard stores mail in a shard of the old number.
CREATE SEQUENCE shards_per_group;
SELECT setval('shards_per_group', CAST(value AS bigint)) FROM meta WHERE name = 'shards_per_group';
