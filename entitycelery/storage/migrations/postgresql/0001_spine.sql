-- Tables of one cluster. Pending work only is in message, so that it stays small; every end is a row of reply.

CREATE TABLE meta (
    name text PRIMARY KEY,
    value text NOT NULL
);

CREATE SEQUENCE fence;
CREATE SEQUENCE message_seq;

-- due_at is null for mail that is due at once: claims read it by seq; delayed mail and retries are read by due_at.
CREATE TABLE message (
    id text COLLATE "C" PRIMARY KEY,
    seq bigint NOT NULL,
    rev integer NOT NULL DEFAULT 0,
    shard_group text COLLATE "C" NOT NULL,
    shard integer NOT NULL,
    type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    lock_key bigint NOT NULL,
    operation text COLLATE "C" NOT NULL,
    args jsonb NOT NULL,
    fingerprint text COLLATE "C" NOT NULL,
    nonce text COLLATE "C",
    sender text COLLATE "C",
    reply_to text COLLATE "C",
    attempt integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    blocking boolean NOT NULL DEFAULT false,
    sent_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at timestamptz,
    expires_at timestamptz,
    last_failure jsonb
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX message_ready ON message (shard_group, shard, seq) WHERE due_at IS NULL;
CREATE INDEX message_due ON message (shard_group, shard, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX message_blocking ON message (lock_key) WHERE blocking;

CREATE TABLE reply (
    id text COLLATE "C" PRIMARY KEY,
    fingerprint text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL CHECK (status IN ('done', 'failed', 'expired', 'cancelled', 'dead')),
    result jsonb,
    failure jsonb,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX reply_finished ON reply (finished_at);

-- A deleted entity leaves its row with a null state, so that its version goes on.
CREATE TABLE state (
    type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    state_version integer NOT NULL,
    state jsonb,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (type, entity_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE dead_letter (
    id text COLLATE "C" PRIMARY KEY,
    seq bigint NOT NULL,
    shard_group text COLLATE "C" NOT NULL,
    shard integer NOT NULL,
    type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    args jsonb NOT NULL,
    fingerprint text COLLATE "C" NOT NULL,
    sender text COLLATE "C",
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    reason text COLLATE "C" NOT NULL,
    failure jsonb NOT NULL,
    sent_at timestamptz NOT NULL,
    died_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX dead_letter_entity ON dead_letter (type, entity_id);

-- What each drain is about to run. A row whose drain lost its claims names the messages that may have killed it.
CREATE UNLOGGED TABLE in_flight (
    token text COLLATE "C" PRIMARY KEY,
    message_ids text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
