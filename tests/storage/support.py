"""What the conformance tests are made of: messages, commits, and a drain that handles everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from entitycelery.address import (
    Address,
    ShardId,
    fingerprint,
    keyed_message_id,
    lock_key,
    new_message_id,
    unique_name,
)
from entitycelery.message import (
    Appended,
    AppendOutcome,
    Ended,
    EntityCommit,
    Failure,
    Mail,
    Mailbox,
    NewMessage,
    Retried,
    Status,
)
from entitycelery.storage.port import closing_store
from entitycelery.storage.sessions import DrainSession
from entitycelery.storage.sql.statement import Statement, fetch
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from entitycelery.unique import Unique, UniqueRule
from tests.waiting import eventually

CLUSTER = "conformance"
SHARDS = 4
LOCK_MODE_VARIABLE = "ENTITY_LOCK_MODE"
LEASE_S = 1.5
"""Where claims are rows, those of the dead are free after so long."""
SHARD = ShardId("default", 0)
OTHER_SHARD = ShardId("default", 1)
STORED, DUPLICATE, CONFLICT, FULL = (
    AppendOutcome.STORED,
    AppendOutcome.DUPLICATE,
    AppendOutcome.CONFLICT,
    AppendOutcome.FULL,
)
JOINED, TAKEN = AppendOutcome.JOINED, AppendOutcome.TAKEN
BROKEN = Failure(reason="HandlerFailed", type="builtins:ValueError", message="broken")

_ROOT = Path(__file__).parents[2]


def make_store(
    url: str,
    *,
    cluster: str = CLUSTER,
    shards: int = SHARDS,
    connections: int = 20,
    timeout_s: float = 10.0,
    lease_s: float = LEASE_S,
    lock_mode: str | None = None,
) -> SqlStore:
    return SqlStore(
        driver_url(url),
        cluster=cluster,
        shards_per_group=shards,
        connections=connections,
        timeout_s=timeout_s,
        lease_s=lease_s,
        # Where the test's fixture has chosen one, programs that the test starts choose the same.
        lock_mode=lock_mode or os.environ.get(LOCK_MODE_VARIABLE, "advisory"),
    )


@contextmanager
def opened(url: str, **options: Any) -> Iterator[SqlStore]:
    """A store with its schema, closed at the end."""
    with closing_store(lambda: make_store(url, **options)) as store:
        assert isinstance(store, SqlStore)
        store.schema.upgrade()
        yield store


def address(entity_id: str = "a", type_name: str = "Account") -> Address:
    return Address(type_name, entity_id)


def message(
    entity_id: str = "a",
    args: str = "{}",
    *,
    key: str | None = None,
    operation: str = "add",
    type_name: str = "Account",
    cluster: str = CLUSTER,
    shard: ShardId = SHARD,
    **options: Any,
) -> NewMessage:
    """A message as an envelope would make it, except that every entity is in one shard unless said otherwise."""
    to = address(entity_id, type_name)
    message_id = new_message_id() if key is None else keyed_message_id(cluster, to, operation, key)
    fields: dict[str, Any] = {
        "id": message_id,
        "fingerprint": fingerprint(to, operation, args.encode()),
        "shard": shard,
        "address": to,
        "lock_key": lock_key(cluster, to),
        "operation": operation,
        "args": args,
        "keyed": key is not None,
        **options,
    }
    return NewMessage(**fields)


def unique(
    rule: UniqueRule,
    args: str = "{}",
    *,
    entity_id: str = "a",
    key: str = "k",
    operation: str = "add",
    for_s: float | None = None,
    **options: Any,
) -> NewMessage:
    """A message whose key is a mutex, as an envelope would make it."""
    name = unique_name(CLUSTER, address(entity_id), operation, key)
    asked = Unique(rule, for_s)
    return message(entity_id, args, operation=operation, fingerprint=name, keyed=True, unique=asked, **options)


def append_unique(store: SqlStore, *messages: NewMessage, **options: Any) -> list[Appended]:
    return store.append_unique(messages, nonce=os.urandom(8).hex(), **options)


def append(store: SqlStore, *messages: NewMessage, **options: Any) -> list[AppendOutcome]:
    return store.append(messages, nonce=os.urandom(8).hex(), **options)


def ended(mail: Mail, *, status: Status = Status.DONE, outgoing: Sequence[NewMessage] = ()) -> Ended:
    failure = BROKEN if status in (Status.FAILED, Status.DEAD) else None
    result = "null" if status is Status.DONE else None
    return Ended(mail, status, result=result, failure=failure, outgoing=tuple(outgoing))


def retried(mail: Mail, *, after_s: float, blocking: bool = False) -> Retried:
    return Retried(mail, after_s, blocking, BROKEN)


def commit_of(mailbox: Mailbox, *turns: Ended | Retried, state: str | None = '{"n": 1}') -> EntityCommit:
    """The commit of these turns; of all mail of the mailbox when none is given."""
    given = turns or tuple(ended(mail) for mail in mailbox.mail)
    return EntityCommit(mailbox.address, mailbox.lock_key, mailbox.stored.version, 1, state, given)


def handle(session: DrainSession, *, limit: int = 100) -> list[str]:
    """Claim, finish and release everything that can be had, and return the ids in the order of handling."""
    handled: list[str] = []
    while mailboxes := session.claim(limit):
        result = session.commit([commit_of(mailbox) for mailbox in mailboxes], last=True)
        assert not result.refused
        handled += [
            mail.id
            for mail in sorted((mail for mailbox in mailboxes for mail in mailbox.mail), key=lambda mail: mail.seq)
            if mail.address not in result.lost
        ]
        session.release(mailboxes)
    return handled


def handle_all(store: SqlStore, shard: ShardId = SHARD) -> list[str]:
    with store.drain_session(shard) as session:
        return handle(session)


def await_unclaimed(store: SqlStore, *messages: NewMessage) -> None:
    """Wait until nobody holds the entities of these messages."""
    eventually(lambda: not any(store.mailbox_status(m.address, m.shard).claimed for m in messages))


def claimed_ids(mailboxes: Sequence[Mailbox]) -> list[str]:
    return [mail.id for mailbox in mailboxes for mail in mailbox.mail]


def query(store: SqlStore, statement: str, **params: Any) -> list[tuple[Any, ...]]:
    """Look into the tables, which are written `{message}`."""
    with store.engines.use("looking") as conn:
        return [tuple(row) for row in fetch(conn, store.dialect.sql(statement), params)]


def change(store: SqlStore, statement: str, **params: Any) -> None:
    """Change a table behind the store's back."""
    with store.engines.use("changing") as conn:
        conn.exec_driver_sql(store.dialect.sql(statement), params)


class Program:
    """A Python program in a process of its own, which says READY and then waits until it is ended."""

    def __init__(self, source: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", source, *arguments],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        """The next line it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        """End it the hard way; it gets no chance to clean up."""
        self._process.kill()
        self._process.wait()

    def finish_and_read(self) -> str:
        """Let it go on past its waiting; what it prints then."""
        return self._process.communicate("\n", timeout=60)[0].strip()

    def finish(self) -> int:
        """Let it go on past its waiting and wait for its end."""
        self._process.communicate("\n", timeout=60)
        return self._process.returncode


HOLDER = """
import sys
from tests.storage.support import SHARD, claimed_ids, opened
with opened(sys.argv[1]) as store, store.drain_session(SHARD) as session:
    session.attend()
    mailboxes = session.claim(100)
    print("READY", *claimed_ids(mailboxes), flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(url: str) -> Iterator[Program]:
    """A process whose drain attends the shard and holds all its mail."""
    program = Program(HOLDER, url)
    try:
        assert program.line().startswith("READY")
        yield program
    finally:
        program.kill()


@contextmanager
def held_snapshot(store: SqlStore) -> Iterator[None]:
    """A transaction of somebody else, because of which vacuum can remove nothing that dies meanwhile."""
    engine = create_engine(store.url)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        conn.exec_driver_sql("SELECT 1")
        yield
    engine.dispose()


def pages_read(store: SqlStore, statement: Statement, **parameters: Any) -> int:
    """How often a statement, which is run, looks at a page."""
    with store.engines.use("explaining") as conn:
        [(plan,)] = fetch(conn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement!s}", parameters)
    [top] = plan if isinstance(plan, list) else json.loads(plan)
    return int(top["Plan"]["Shared Hit Blocks"]) + int(top["Plan"]["Shared Read Blocks"])


def shards_of(group: str) -> list[ShardId]:
    """The first four shards of a group."""
    return [ShardId(group, number) for number in range(4)]
