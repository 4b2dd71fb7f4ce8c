"""`EntityTestEnvironment`: entities without a worker, a broker or a database, under a clock of the test's own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from entitycelery import EntityCelery, SignalOutcome
from entitycelery.exceptions import ConfigurationError, MessageExpired, ReplyTimeout
from entitycelery.testing import EntityTestEnvironment
from tests.testing.conftest import START
from tests.testing.shop import register


def test_an_ask_is_answered_and_leaves_to_the_test_what_it_sent(shop: Any, env: EntityTestEnvironment) -> None:
    alice, bob = shop.Account.ref("alice"), shop.Account.ref("bob")
    alice.deposit.ask(100)

    assert alice.transfer.ask(30, to="bob") == 70

    [sent] = env.sent()
    assert (str(sent.address), sent.operation, sent.args, sent.due) == ("Account/bob", "deposit", {"amount": 30}, None)
    assert env.assert_sent(bob.deposit.prepare(30)) == sent
    assert env.sent(alice) == []
    assert not shop.entities.exists(bob)
    assert env.run() == 1
    assert shop.entities.state(bob).balance == 30
    assert env.run() == 0


def test_what_was_not_sent_is_told_with_what_was(shop: Any, env: EntityTestEnvironment) -> None:
    shop.Account.ref("alice").deposit.send(5)

    with pytest.raises(
        AssertionError, match=r"0 messages are Account/bob deposit \{'amount': 5\}; sent were:\n  Account"
    ):
        env.assert_sent(shop.Account.ref("bob").deposit.prepare(5))


def test_every_verb_works(shop: Any, env: EntityTestEnvironment) -> None:
    alice = shop.Account.ref("alice")

    assert alice.deposit.send(1).result() == 1
    assert alice.deposit.delay(1).get(timeout=1) == 2
    assert asyncio.run(alice.deposit.aask(1)) == 3
    assert alice.fetch.ask() == 3
    assert [one.result() for one in shop.entities.send_many([alice.deposit.prepare(1)] * 2)] == [4, 5]
    assert alice.deposit.options(key="k").ask(1) == alice.deposit.options(key="k").ask(1) == 6
    shop.entities.delete(alice)
    env.run()
    assert not shop.entities.exists(alice)


def test_time_passes_as_the_test_wants_it(shop: Any, env: EntityTestEnvironment) -> None:
    alice = shop.Account.ref("alice")
    assert env.now == START
    later = alice.deposit.options(delay_s=3600).send(5)
    at = alice.deposit.options(deliver_at=START + timedelta(hours=2)).send(5)
    gone = alice.deposit.options(delay_s=60, expires_s=30).send(5)
    with pytest.raises(ReplyTimeout, match=r"no turn can run now: what it waits for may need env\.skip"):
        later.result()

    assert env.skip(minutes=59, seconds=59) == 1
    with pytest.raises(MessageExpired):
        gone.result()
    assert env.skip(seconds=1) == 1
    assert env.now == START + timedelta(hours=1)

    assert later.result() == 5
    env.skip(days=1)
    assert at.result() == 10
    assert shop.entities.reply(at.id).finished_at_epoch_s == (START + timedelta(hours=2)).timestamp()


def test_retries_come_at_their_time(shop: Any, env: EntityTestEnvironment) -> None:
    sent = shop.Account.ref("alice").shaky.send()
    assert env.run() == 1

    assert env.skip(seconds=59) == 0
    assert env.skip(seconds=1) == 1
    assert env.skip(minutes=10) == 1

    assert sent.result() == 2


def test_timers_signals_and_time_outs(shop: Any, env: EntityTestEnvironment) -> None:
    paid, expired = shop.Order.ref("paid"), shop.Order.ref("expired")
    token = paid.place.ask()
    waiting = expired.checkout.send()
    env.skip(days=2, hours=1)
    assert [(signal.name, str(signal.address)) for signal in env.signals()] == [
        ("payment", "Order/expired"),
        ("payment", "Order/paid"),
    ]
    assert len(shop.entities.state(paid).reminders) == 2

    assert shop.entities.signal(token).succeed(7) is SignalOutcome.COMPLETED
    env.run()
    assert shop.entities.state(paid).status == "paid 7"
    assert shop.entities.state(shop.Account.ref("shop")).balance == 7

    env.skip(days=7)
    assert waiting.result() == "expired"
    assert env.signals() == env.sent() == []
    assert len(shop.entities.state(expired).reminders) == 3


def test_schedules_fire_on_the_way(shop: Any, env: EntityTestEnvironment) -> None:
    env.skip(days=3)

    assert shop.entities.state(shop.Report.ref("daily")).days == ["03-02", "03-03", "03-04"]


def test_nothing_outlives_the_environment(shop: Any) -> None:
    for _ in range(2):
        with EntityTestEnvironment(shop.entities) as env:
            assert shop.Account.ref("alice").deposit.ask(1) == 1
            assert abs(env.now - datetime.now(UTC)) < timedelta(minutes=5)

    with pytest.raises(ConfigurationError, match="the environment is not entered"):
        env.run()


def test_two_apps_are_tested_side_by_side(shop: Any, env: EntityTestEnvironment) -> None:
    app = Celery("other", set_as_current=False)
    other = register(EntityCelery(app))
    with EntityTestEnvironment(other.entities):
        other.Account.ref("alice").deposit.ask(1)

        assert not shop.entities.exists(shop.Account.ref("alice"))
    app.close()


def test_what_makes_no_sense_is_refused(env: EntityTestEnvironment) -> None:
    with pytest.raises(ConfigurationError, match=r"skip\(\.\.\.\) goes forward only"):
        env.skip(seconds=-1)
