-- Timers of entities, and schedules.

-- The timers that an entity has set, by name: they come and go with its turns, under its version. Null: none.
ALTER TABLE state ADD COLUMN timers jsonb;

-- How many delayed messages wait for one entity, however many wait for others of its shard.
CREATE INDEX message_delayed ON message (lock_key) WHERE due_at IS NOT NULL;

-- A schedule and its next tick. The tick fires in the transaction that moves the row on.
CREATE TABLE schedule (
    name text COLLATE "C" PRIMARY KEY,
    definition jsonb NOT NULL,
    generation text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    tick text COLLATE "C",
    tick_at timestamptz,
    look_at timestamptz,
    last_tick text COLLATE "C",
    last_fired_at timestamptz,
    last_message_id text COLLATE "C",
    fired bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    failure text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX schedule_look ON schedule (look_at) WHERE NOT paused AND look_at IS NOT NULL;
