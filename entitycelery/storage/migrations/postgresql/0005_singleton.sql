-- Singletons: who runs each, how it is, and what operators want of it. On PostgreSQL with session locks a lock by
-- number decides who holds it, and the row says so; elsewhere the row decides, until it expires.

CREATE TABLE singleton (
    name text COLLATE "C" PRIMARY KEY,
    number integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    shard_group text COLLATE "C" NOT NULL,
    holder text COLLATE "C",
    address text,
    epoch bigint NOT NULL DEFAULT 0,
    since timestamptz,
    expires_at timestamptz,
    handed_over boolean NOT NULL DEFAULT true,
    successor_waits_s double precision NOT NULL DEFAULT 0,
    asked_by text COLLATE "C",
    wanted text COLLATE "C",
    avoided text COLLATE "C",
    restart_wanted boolean NOT NULL DEFAULT false,
    pid integer,
    started_at timestamptz,
    heartbeat_at timestamptz,
    heartbeat_interval_s double precision NOT NULL,
    restarts bigint NOT NULL DEFAULT 0,
    last_failure text,
    last_failure_at timestamptz
) WITH (fillfactor = 50);
