-- Keys that are held like mutexes. A pending message holds its key, whose name stands in the place of its fingerprint;
-- other fingerprints are hexadecimal, and before 'u'.

CREATE INDEX message_unique ON message (fingerprint) WHERE fingerprint > 'u';

-- Guards the decision about a key, and keeps the time for which it is taken at least. Removed when that is over.
CREATE TABLE unique_key (
    name TEXT PRIMARY KEY,
    message_id TEXT,
    begin_at REAL NOT NULL,
    end_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX unique_key_end ON unique_key (end_at);
