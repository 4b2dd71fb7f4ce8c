-- Signals that an entity expects, and messages that a later turn answers.

-- What is expected, by name, under the state's version as the timers are. Null: nothing ever was.
ALTER TABLE state ADD COLUMN signals TEXT;

-- Its turn has been; what is missing is the answer. Such a row is due at no time.
ALTER TABLE message ADD COLUMN parked INTEGER NOT NULL DEFAULT 0;

-- A pending signal is a message that is due when it times out.
CREATE INDEX message_signal ON message (type, entity_id, id) WHERE operation = 'entity.signal';

-- By this the tokens of signals are signed.
INSERT INTO meta (name, value) VALUES ('signal_secret', lower(hex(randomblob(32))));
