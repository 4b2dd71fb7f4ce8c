-- Keys that are held like mutexes. A pending message holds its key, whose name stands in the place of its fingerprint;
-- other fingerprints are hexadecimal, and before 'u'.

CREATE INDEX message_unique ON message (fingerprint) WHERE fingerprint > 'u';

-- Guards the decision about a key, and keeps the time for which it is taken at least. Removed when that is over.
CREATE TABLE unique_key (
    name text COLLATE "C" PRIMARY KEY,
    message_id text COLLATE "C",
    begin_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX unique_key_end ON unique_key (end_at);
