-- Claims read the notes of some seconds only, however many vacuum cannot remove yet.
CREATE INDEX in_flight_noted ON in_flight (noted_at);
