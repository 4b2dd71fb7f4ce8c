-- Timers of entities, and schedules.

-- The timers that an entity has set, by name: they come and go with its turns, under its version. Null: none.
ALTER TABLE state ADD COLUMN timers TEXT;

-- How many delayed messages wait for one entity, however many wait for others of its shard.
CREATE INDEX message_delayed ON message (lock_key) WHERE due_at IS NOT NULL;

-- A schedule and its next tick. The tick fires in the transaction that moves the row on.
CREATE TABLE schedule (
    name TEXT PRIMARY KEY,
    definition TEXT NOT NULL,
    generation TEXT NOT NULL,
    origin TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0,
    tick TEXT,
    tick_at REAL,
    look_at REAL,
    last_tick TEXT,
    last_fired_at REAL,
    last_message_id TEXT,
    fired INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    failure TEXT,
    created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX schedule_look ON schedule (look_at) WHERE NOT paused AND look_at IS NOT NULL;
