# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Calls as they are meant: every line passes, and has the type that is written beside it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import assert_type

from entitycelery import (
    AsyncResult,
    EntityStatus,
    LoopContext,
    PendingSignal,
    Prepared,
    Sent,
    SignalOutcome,
    Singleton,
)
from tests.typing.bank import Account, Audit, Order, Other, Shared, alice, entities

assert_type(alice, Account)
assert_type(Account.ref(17), Account)

# ask has the handler's type, send gives a handle of it.
assert_type(alice.deposit.ask(5), int)
assert_type(alice.deposit.ask(amount=5), int)
assert_type(alice.transfer.ask(5, "bob"), Order | None)
assert_type(alice.transfer.ask(5, to="bob", note="rent"), Order | None)
assert_type(alice.deposit.send(5), Sent[int])
assert_type(alice.deposit.send(5).id, str)
assert_type(alice.deposit.send(5).result(timeout_s=3), int)
alice.close.ask()
assert_type(Audit.ref(1).note.ask("x"), int)
assert_type(Shared.ref("a").add.ask(), int)
assert_type(Other.ref("a").add.send(), Sent[int])

# Options keep the type.
assert_type(alice.deposit.options(key="k", delay_s=5).send(5), Sent[int])
assert_type(alice.deposit.options(delay_s=timedelta(minutes=1)).options(timeout_s=3.5).ask(5), int)
assert_type(alice.deposit.options(key="k", unique="queue", unique_for_s=timedelta(minutes=1)).send(5), Sent[int])
alice.deposit.options(deliver_at=datetime(2030, 1, 1, tzinfo=UTC), expires_s=60, connection=None).send(5)

# Celery's spelling.
assert_type(alice.deposit.delay(5), AsyncResult[int])
assert_type(alice.deposit.delay(5).get(timeout=3), int)
assert_type(alice.transfer.delay(5, to="bob").get(), Order | None)
assert_type(alice.deposit.apply_async((5,), countdown=3, task_id="t").get(), int)
assert_type(alice.deposit.delay(5).ready(), bool)

# An async handler's result is what it returns, not its coroutine.
assert_type(alice.fetch.ask(["a"]), dict[str, int])
assert_type(alice.fetch.send(["a"]).result(), dict[str, int])
assert_type(alice.fetch_one.ask("a"), bytes)
assert_type(alice.fetch_one.delay("a").get(), bytes)

# Queries have their own type, and take their own arguments.
assert_type(alice.statement(), list[int])
assert_type(alice.statement(since=None), list[int])

# Many at once.
assert_type(alice.deposit.prepare(5), Prepared[int])
entities.send_many([alice.deposit.prepare(5), alice.transfer.prepare(5, "bob")])

# What is asked about an entity is typed as its class.
assert_type(entities.state(alice), Account)
assert_type(entities.state(alice).balance, int)
assert_type(entities.state(alice).tags, list[str])
assert_type(entities.exists(alice), bool)
assert_type(entities.status(alice), EntityStatus)

# An entity made by hand is an ordinary object.
by_hand = Account(balance=5, owner="me")
assert_type(by_hand.deposit(5), int)
assert_type(by_hand.statement(), list[int])
by_hand.balance = 7


async def asynchronous() -> None:
    assert_type(await alice.deposit.aask(5), int)
    assert_type(await alice.fetch.aask(["a"]), dict[str, int])
    assert_type(await alice.deposit.asend(5), Sent[int])
    assert_type(await (await alice.deposit.asend(5)).aresult(timeout_s=1), int)
    assert_type(await by_hand.fetch(["a"]), dict[str, int])


# Loops stay the functions that they are.
@entities.singleton
def follow(stop: threading.Event) -> None: ...


@entities.singleton(name="feed", on_become_leader=lambda: None, restart_backoff_s=2.0)
def follow_with_context(stop: threading.Event, context: LoopContext) -> None:
    context.heartbeat()
    assert_type(context.fence, int)


follow(threading.Event())
assert_type(entities.singletons(), list[Singleton])

# Signals.
assert_type(entities.signal("token").succeed({"any": "value"}), SignalOutcome)
assert_type(entities.signal(alice, "approval").fail(ValueError("no")), SignalOutcome)
assert_type(entities.signal(alice, "approval").cancel(), SignalOutcome)
assert_type(entities.signals(alice), list[PendingSignal])
assert_type(entities.signal_token(alice, "approval"), str)
