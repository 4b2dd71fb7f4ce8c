-- The key of a state ends with its era, which changes with every 16th version: however many of its earlier versions
-- vacuum cannot remove yet, the newest is found at once (see state.py). Writes the table anew.
ALTER TABLE state DROP CONSTRAINT state_pkey;
ALTER TABLE state ADD COLUMN era bigint NOT NULL GENERATED ALWAYS AS ((version + 15) / 16) STORED;
ALTER TABLE state ADD PRIMARY KEY (type, entity_id, era);

-- Every entity that has a state. Its rows never change, so that of two first commits one finds the other's, at once.
CREATE TABLE entity (
    type text COLLATE "C" NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (type, entity_id)
);
INSERT INTO entity (type, entity_id) SELECT type, entity_id FROM state;

-- Releases that do not know the era look for a key that is no longer there.
INSERT INTO meta (name, value) VALUES ('needs_migration', '6')
    ON CONFLICT (name) DO UPDATE SET value = excluded.value;
