"""The table `unique_key`: keys that are held like mutexes. Their holders are pending messages, so nothing is released.

A row guards the decision about its key, and keeps the time for which the key is taken at least. It is the last that a
transaction locks, in order of name: whoever has one waits for no message's row, so nobody who waits for it while
holding messages' rows, as a turn's commit does, can deadlock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.engine import Connection

from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import REFUSALS, Appended, AppendOutcome, NewMessage
from entitycelery.storage.key_rules import Change, Holder, Key, Window
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.statement import fetch, run, transaction

Windows = dict[str, tuple[float, Window]]
"""Of each key the present moment, and the time for which it is taken at least."""

_ATTEMPTS = 20
_SAVEPOINT = "unique_keys"
_UNUSED_FOR_S = 60.0
# A drain that lives says so more often than that: older notes are of drains that ended, or are as good as dead, and
# vacuum may have left a great many of them.
_NOTED_S = 120.0


class Outcome(NamedTuple):
    """What became of each message, in order, and the ids of those with a due moment that was not their sender's."""

    appended: list[Appended]
    delayed: list[str]

    @property
    def is_refused(self) -> bool:
        return any(one.outcome in REFUSALS for one in self.appended)


class Decided(msgspec.Struct):
    """What becomes of sends with `unique`: each one's outcome by its id, and the keys as they are then."""

    appended: dict[str, Appended]
    keys: dict[str, Key]

    @property
    def stored(self) -> dict[str, NewMessage]:
        """What is stored, as it is stored."""
        return {message_id: message for key in self.keys.values() for message_id, message in key.stored.items()}

    @property
    def changed(self) -> dict[str, Change]:
        """Pending messages that others join."""
        return {message_id: change for key in self.keys.values() for message_id, change in key.changed.items()}

    @property
    def delayed(self) -> list[str]:
        """Those of both that are due at some moment."""
        stored = [message_id for message_id, message in self.stored.items() if message.is_delayed]
        return stored + [message_id for message_id, change in self.changed.items() if change.due_epoch_s is not None]

    @property
    def is_refused(self) -> bool:
        return any(one.outcome in REFUSALS for one in self.appended.values())


def _is_noted(dialect: Dialect) -> str:
    """A condition: a drain that lives has noted the message `m`."""
    return (
        f"EXISTS (SELECT 1 FROM {{in_flight}} AS f WHERE f.noted_at >= (SELECT {dialect.after(f'-{_NOTED_S}')}) "
        f"AND {dialect.contains('f.message_ids', 'm.id')})"
    )


class UniqueKeys:
    """Statements about keys that are held."""

    def __init__(self, dialect: Dialect, messages: Messages) -> None:
        self._dialect = dialect
        self._messages = messages
        name = dialect.rowset("rows", name="text")
        # Locks the rows and tells what they say now; the value that is set is the one that is there.
        self._take = dialect.sql(
            "INSERT INTO {unique_key} (name, begin_at, end_at) SELECT r.name, {now}, {now} FROM {rows} WHERE true "
            "ORDER BY r.name ON CONFLICT (name) DO UPDATE SET end_at = unique_key.end_at "
            "RETURNING name, message_id, {begin}, {end}, {now_epoch}",
            rows=name,
            now=dialect.now,
            begin=dialect.to_epoch("begin_at"),
            end=dialect.to_epoch("end_at"),
            now_epoch=dialect.to_epoch(dialect.now),
        )
        # By the index message_unique, which has these messages alone.
        of_keys = f"FROM {{message}} AS m WHERE {dialect.any_of('m.fingerprint', 'names')} AND m.fingerprint > 'u'"
        self._look = dialect.sql(
            "SELECT m.fingerprint, m.id, {sent}, {due}, {expires}, m.last_failure IS NOT NULL, "
            f"{_is_noted(dialect)} {of_keys} ORDER BY m.seq",
            sent=dialect.to_epoch("m.sent_at"),
            due=dialect.to_epoch("m.due_at"),
            expires=dialect.to_epoch("m.expires_at"),
        )
        of_ids = f"FROM {{message}} WHERE {dialect.any_of('id', 'ids')}"
        self._known = dialect.sql(f"SELECT id {of_ids} UNION SELECT id {of_ids.replace('{message}', '{reply}')}")
        self._lock = dialect.sql(f"SELECT id {of_ids} ORDER BY id {dialect.for_update}")
        self._lock_free = dialect.sql(f"SELECT id {of_ids} ORDER BY id {dialect.for_update_of_free}")
        self._change = dialect.sql(
            "UPDATE {message} SET rev = rev + 1, args = {args}, sender = r.sender, "
            "reply_to = coalesce(message.reply_to, r.reply_to), due_at = {due}, expires_at = {expires} "
            "FROM {rows} WHERE {among} AND message.id = r.id",
            among=dialect.any_of("message.id", "ids"),
            args=dialect.json("r.args"),
            due=dialect.from_epoch("r.due_at"),
            expires=dialect.from_epoch("r.expires_at"),
            rows=dialect.rowset(
                "rows", id="text", args="text", sender="text", reply_to="text", due_at="float", expires_at="float"
            ),
        )
        self._keep = dialect.sql(
            "UPDATE {unique_key} SET message_id = r.message_id, begin_at = {begin}, end_at = {end} "
            "FROM {rows} WHERE {among} AND unique_key.name = r.name",
            among=dialect.any_of("unique_key.name", "ids"),
            begin=dialect.from_epoch("r.begin_at"),
            end=dialect.from_epoch("r.end_at"),
            rows=dialect.rowset("rows", name="text", message_id="text", begin_at="float", end_at="float"),
        )
        self._of_window = dialect.sql(
            f"SELECT message_id FROM {{unique_key}} WHERE name = :name AND end_at > {dialect.now}"
        )
        self._unused = dialect.sql(
            "SELECT name FROM {unique_key} WHERE end_at < (SELECT {instant}) ORDER BY end_at LIMIT :limit "
            + dialect.for_update_of_free,
            instant=dialect.after("CAST(:from_now_s AS double precision)"),
        )
        self._remove = dialect.sql(f"DELETE FROM {{unique_key}} WHERE {dialect.any_of('name', 'names')}")

    def append(
        self,
        conn: Connection,
        messages: Sequence[NewMessage],
        nonce: str,
        *,
        again: bool = False,
        ending: Collection[str] = (),
        locked: Collection[str] = (),
    ) -> Outcome:
        """Store messages, some of them with `unique`, inside the caller's transaction. A refusal is to undo it.

        Args:
            ending: Messages that end in this transaction: they hold no key any more.
            locked: Messages whose rows this transaction has locked.
        """
        sends = [message for message in messages if message.unique is not None]
        decided = self._decide_under_lock(conn, sends, again, ending, locked)
        if decided.is_refused:
            return Outcome([decided.appended.get(m.id, Appended(AppendOutcome.STORED, m.id)) for m in messages], [])
        stored = decided.stored
        storable = [stored.get(m.id, m) for m in messages if m.unique is None or m.id in stored]
        outcomes = self._messages.append(conn, storable, nonce, again=again) if storable else []
        self._write(conn, decided)
        appended = decided.appended | {
            m.id: Appended(outcome, m.id) for m, outcome in zip(storable, outcomes, strict=True)
        }
        return Outcome([appended[message.id] for message in messages], decided.delayed)

    def targets(self, conn: Connection, messages: Sequence[NewMessage], ending: Collection[str]) -> list[str]:
        """The pending messages that these would join now: to be locked in order with others, before the keys are."""
        sends = [message for message in messages if message.unique is not None]
        if not sends:
            return []
        windows = {m.fingerprint: (0.0, Window(None, 0.0, 0.0)) for m in sends}
        return list(self._decide(conn, sends, windows, ending).changed)

    def taken(self, conn: Connection, names: Collection[str]) -> set[str]:
        """Lock those keys, and tell which of them a pending message holds."""
        if not names:
            return set()
        self._taken_rows(conn, names)
        return {row[0] for row in fetch(conn, self._look, {"names": self._dialect.values(names)})}

    def holder(self, conn: Connection, name: str) -> str | None:
        """The message that holds a key: the pending one that was sent last, else the one whose time is not over."""
        pending = fetch(conn, self._look, {"names": self._dialect.values([name])})
        if pending:
            return str(pending[-1][1])
        kept = fetch(conn, self._of_window, {"name": name})
        return kept[0][0] if kept else None

    def purge(self, conn: Connection, limit: int) -> int:
        """Remove up to `limit` rows that keep nothing, oldest first, by the index unique_key_end; how many there were.

        Whether a key is held is for its messages to say, so nothing is forgotten.
        """
        with transaction(conn, self._dialect.begin):
            found = fetch(conn, self._unused, {"from_now_s": -_UNUSED_FOR_S, "limit": limit})
            if found:
                run(conn, self._remove, {"names": self._dialect.values([row[0] for row in found])})
        return len(found)

    def _decide_under_lock(
        self,
        conn: Connection,
        sends: Sequence[NewMessage],
        again: bool,
        ending: Collection[str],
        locked: Collection[str],
    ) -> Decided:
        """What becomes of these, with their keys and the messages that they join locked."""
        for _ in range(_ATTEMPTS):
            run(conn, f"SAVEPOINT {_SAVEPOINT}")
            windows = self._taken_rows(conn, {message.fingerprint for message in sends})
            known = self._known_ids(conn, sends) if again else set()
            decided, wanted = self._decide_and_lock(
                conn, [m for m in sends if m.id not in known], windows, ending, locked
            )
            if not wanted:
                run(conn, f"RELEASE SAVEPOINT {_SAVEPOINT}")
                decided.appended |= {message_id: Appended(AppendOutcome.STORED, message_id) for message_id in known}
                return decided
            # Someone ends or changes one just now: to wait for it with a key in hand could be to wait for ever.
            self._wait_for(conn, wanted)
        raise StoreUnavailable("a key's messages changed again and again; the store is misbehaving")

    def _decide_and_lock(
        self,
        conn: Connection,
        sends: Sequence[NewMessage],
        windows: Windows,
        ending: Collection[str],
        locked: Collection[str],
    ) -> tuple[Decided, list[str]]:
        """What becomes of these; and which messages must be waited for first, if any."""
        mine = set(locked)
        while True:
            decided = self._decide(conn, sends, windows, ending)
            wanted = [] if decided.is_refused else sorted(decided.changed.keys() - mine)
            if not wanted or not self._are_free(conn, wanted):
                return decided, wanted
            # Once more: what was seen of them was seen before they were locked.
            mine.update(wanted)

    def _decide(
        self,
        conn: Connection,
        sends: Sequence[NewMessage],
        windows: Windows,
        ending: Collection[str],
    ) -> Decided:
        # A later statement than the one that locked the keys, so that it sees what their last holders have stored.
        holders: dict[str, list[Holder]] = defaultdict(list)
        for name, message_id, *row in fetch(conn, self._look, {"names": self._dialect.values(list(windows))}):
            if message_id not in ending:
                sent_s, due_s, expires_s, retrying, running = row
                holders[name].append(Holder(message_id, sent_s, due_s, expires_s, bool(retrying), bool(running)))
        keys = {name: Key(now_s, holders[name], window) for name, (now_s, window) in windows.items()}
        return Decided({message.id: keys[message.fingerprint].decide(message) for message in sends}, keys)

    def _taken_rows(self, conn: Connection, names: Collection[str]) -> Windows:
        """Lock the rows of keys; of each the present moment and its window."""
        rows = self._dialect.rows([{"name": name} for name in sorted(names)])
        return {name: (now_s, Window(*window)) for name, *window, now_s in fetch(conn, self._take, {"rows": rows})}

    def _known_ids(self, conn: Connection, sends: Sequence[NewMessage]) -> set[str]:
        """Those that an earlier attempt has stored, ended or not."""
        return {row[0] for row in fetch(conn, self._known, {"ids": self._dialect.values([m.id for m in sends])})}

    def _are_free(self, conn: Connection, ids: Sequence[str]) -> bool:
        """Lock those messages without waiting; whether all are there and locked now."""
        return len(fetch(conn, self._lock_free, {"ids": self._dialect.values(ids)})) == len(ids)

    def _wait_for(self, conn: Connection, ids: Sequence[str]) -> None:
        """Let the keys go and wait until nobody else has the rows of those messages."""
        run(conn, f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        fetch(conn, self._lock, {"ids": self._dialect.values(ids)})
        run(conn, f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        run(conn, f"RELEASE SAVEPOINT {_SAVEPOINT}")

    def _write(self, conn: Connection, decided: Decided) -> None:
        changes = [
            {
                "id": message_id,
                "args": change.joined.args,
                "sender": change.joined.sender,
                "reply_to": change.joined.reply_to,
                "due_at": change.due_epoch_s,
                "expires_at": change.expires_epoch_s,
            }
            for message_id, change in sorted(decided.changed.items())
        ]
        if changes:
            run(conn, self._change, self._dialect.keyed_rows(changes))
        kept = [_kept(name, key.window) for name, key in decided.keys.items() if key.window.message_id in key.stored]
        if kept:
            run(conn, self._keep, self._dialect.keyed_rows(kept, "name"))


def _kept(name: str, window: Window) -> dict[str, Any]:
    return {
        "name": name,
        "message_id": window.message_id,
        "begin_at": window.begin_epoch_s,
        "end_at": window.end_epoch_s,
    }
