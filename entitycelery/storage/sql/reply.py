"""The table `reply`: the stored outcome of every message, kept for the retention time."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import Address, is_message_id
from entitycelery.message import Answer, Reply, Status
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.failure import failure_json, failure_of_json, unreadable
from entitycelery.storage.sql.statement import fetch, run

_STATUSES = frozenset(Status)


class Replies:
    """Statements that write, read and purge replies."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # No ON CONFLICT: a second answer to one message cannot commit.
        self._write = dialect.sql(
            "INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, result, failure, finished_at) "
            "SELECT m.id, m.fingerprint, m.type, m.entity_id, m.operation, r.status, {result}, {failure}, {now} "
            "FROM {rows} JOIN {message} AS m ON m.id = r.id WHERE {among}",
            among=dialect.any_of("m.id", "ids"),
            result=dialect.json("r.result"),
            failure=dialect.json("r.failure"),
            now=dialect.now,
            rows=dialect.rowset("rows", id="text", status="text", result="text", failure="text"),
        )
        self._read = dialect.sql(
            "SELECT id, type, entity_id, operation, status, {result}, {failure}, {finished} FROM {reply} WHERE {among}",
            result=dialect.json_text("result"),
            failure=dialect.json_text("failure"),
            finished=dialect.to_epoch("finished_at"),
            among=dialect.any_of("id", "ids"),
        )
        # Replies of dead letters are spared: until it is retried or discarded, a letter's key stays known. Asked of
        # each reply that says dead, since NOT EXISTS would be planned as a look at all letters.
        # The limit is a subquery, so that it is known once and the index is searched by it: young replies, which are
        # nearly all, are not looked at. Found and deleted in two statements, so that no plan joins the whole table.
        self._old = dialect.sql(
            "SELECT id FROM {reply} WHERE finished_at < (SELECT {limit_instant}) AND (status <> 'dead' "
            "OR (SELECT d.id FROM {dead_letter} AS d WHERE d.id = reply.id) IS NULL) ORDER BY finished_at LIMIT :limit",
            limit_instant=dialect.after("CAST(:age_s AS double precision)"),
        )
        self._delete = dialect.sql("DELETE FROM {reply} WHERE {among}", among=dialect.any_of("id", "ids"))

    def write(self, conn: Connection, answers: Sequence[Answer]) -> None:
        """Insert the replies of pending messages; before the messages are deleted."""
        rows = [
            {
                "id": answer.message_id,
                "status": answer.status.value,
                "result": answer.result,
                "failure": failure_json(answer.failure),
            }
            for answer in sorted(answers, key=lambda answer: answer.message_id)
        ]
        run(conn, self._write, self._dialect.keyed_rows(rows))

    def read(self, conn: Connection, ids: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there; by the primary key."""
        possible = self._dialect.values([one for one in ids if is_message_id(one)])
        return {row[0]: _reply(row) for row in fetch(conn, self._read, {"ids": possible})}

    def purge(self, conn: Connection, older_than_s: float, limit: int) -> int:
        """Delete up to `limit` old replies, oldest first, by the index reply_finished."""
        old = [row[0] for row in fetch(conn, self._old, {"age_s": -older_than_s, "limit": limit})]
        return run(conn, self._delete, {"ids": self._dialect.values(old)}) if old else 0


def _reply(row: Sequence[object]) -> Reply:
    message_id, type_name, entity_id, operation, status, result, failure, finished = row
    explained = None if failure is None else failure_of_json(failure)  # type: ignore[arg-type]
    if status not in _STATUSES:
        status = Status.FAILED
        explained = unreadable(f"the stored reply of message {message_id} has the status {row[4]!r}, which is none")
    return Reply(
        id=str(message_id),
        address=Address(str(type_name), str(entity_id)),
        operation=str(operation),
        status=Status(str(status)),
        result=None if result is None else str(result),
        failure=explained,
        finished_at_epoch_s=float(finished),  # type: ignore[arg-type]
    )
