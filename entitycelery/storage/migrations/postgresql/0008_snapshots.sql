-- Claims read the notes of some seconds only, however many vacuum cannot remove yet.
CREATE INDEX in_flight_noted ON in_flight (noted_at);

-- Not for looks for due mail: where statistics say that none is delayed, all of this index, which is in no order of
-- moments, looked as cheap as a part of the other. The second condition is no more than what finds an entity's mail.
DROP INDEX message_delayed;
CREATE INDEX message_delayed ON message (lock_key) WHERE due_at IS NOT NULL AND lock_key IS NOT NULL;
