"""What becomes of a send with `unique`, decided from what is known of its key."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from entitycelery.address import Address, ShardId
from entitycelery.message import Appended, AppendOutcome, NewMessage
from entitycelery.storage.key_rules import DEBOUNCE_DELAYS_AT_MOST, Change, Holder, Key, Window
from entitycelery.unique import Unique, UniqueRule

NOW_S = 1_000.0
NO_WINDOW = Window(None, NOW_S, NOW_S)
STORED, JOINED, TAKEN = AppendOutcome.STORED, AppendOutcome.JOINED, AppendOutcome.TAKEN
WAITING = Holder("waiting", NOW_S - 5)
RUNNING = Holder("running", NOW_S - 5, running=True)


def sent(rule: UniqueRule, message_id: str = "new", *, for_s: float | None = None, **options: Any) -> NewMessage:
    return NewMessage(
        id=message_id,
        fingerprint="unique:k",
        shard=ShardId("default", 0),
        address=Address("Account", "a"),
        lock_key=1,
        operation="add",
        keyed=True,
        unique=Unique(rule, for_s),
        **{"args": "{}", **options},
    )


def key(*holders: Holder, window: Window = NO_WINDOW) -> Key:
    return Key(NOW_S, list(holders), window)


def joined(holder: Holder, message: NewMessage, window: Window = NO_WINDOW) -> Change:
    """What a holder gets of a message that joins it."""
    one = key(holder, window=window)
    assert one.decide(message) == Appended(JOINED, holder.id)
    assert one.stored == {}
    return one.changed[holder.id]


@pytest.mark.parametrize("rule", get_args(UniqueRule))
def test_a_message_whose_key_is_free_is_stored(rule: UniqueRule) -> None:
    one = key()

    assert one.decide(sent(rule)) == Appended(STORED, "new")

    assert (list(one.stored), one.changed) == (["new"], {})
    assert one.stored["new"].keyed is False


@pytest.mark.parametrize(
    ("rule", "waiting", "running"),
    [
        ("reject", Appended(TAKEN, "waiting"), Appended(TAKEN, "running")),
        ("replace", Appended(JOINED, "waiting"), Appended(JOINED, "running")),
        ("queue", Appended(JOINED, "waiting"), Appended(STORED, "new")),
        ("debounce", Appended(JOINED, "waiting"), Appended(STORED, "new")),
    ],
)
def test_what_becomes_of_a_send_beside_one_that_waits_and_one_that_runs(
    rule: UniqueRule, waiting: Appended, running: Appended
) -> None:
    assert key(WAITING).decide(sent(rule, delay_s=1)) == waiting
    assert key(RUNNING).decide(sent(rule, delay_s=1)) == running


@pytest.mark.parametrize("rule", ["replace", "queue", "debounce"])
def test_a_send_joins_what_waits_beside_what_runs(rule: UniqueRule) -> None:
    assert key(RUNNING, WAITING).decide(sent(rule, delay_s=1)).message_id == "waiting"


def test_a_retry_that_waits_is_joined_though_a_later_message_runs() -> None:
    failed = Holder("failed", NOW_S - 9, due_epoch_s=NOW_S + 60, retrying=True)

    assert key(failed, RUNNING).decide(sent("queue")) == Appended(JOINED, "failed")


def test_the_last_of_several_holders_is_the_one_that_is_named() -> None:
    assert key(RUNNING, WAITING).decide(sent("reject")) == Appended(TAKEN, "waiting")


@pytest.mark.parametrize("rule", ["replace", "queue", "debounce"])
def test_whoever_is_joined_gets_the_arguments(rule: UniqueRule) -> None:
    message = sent(rule, args='{"n":2}', sender="Account/b", reply_to="c", delay_s=1)

    assert joined(WAITING, message).joined is message


@pytest.mark.parametrize(
    ("rule", "before", "given", "after"),
    [
        ("replace", None, {}, None),
        ("replace", NOW_S + 60, {}, NOW_S + 60),
        ("replace", NOW_S + 60, {"delay_s": 5}, NOW_S + 5),
        ("replace", None, {"deliver_at_epoch_s": NOW_S + 7}, NOW_S + 7),
        ("queue", NOW_S + 60, {}, NOW_S + 60),
        ("queue", NOW_S + 60, {"delay_s": 5}, NOW_S + 60),
        ("queue", None, {"delay_s": 5}, NOW_S + 5),
        ("debounce", NOW_S + 1, {"delay_s": 5}, NOW_S + 5),
        ("debounce", NOW_S - 1, {"delay_s": 5}, NOW_S + 5),
    ],
)
def test_when_what_is_joined_is_due(
    rule: UniqueRule, before: float | None, given: dict[str, float], after: float | None
) -> None:
    holder = Holder("h", NOW_S - 5, due_epoch_s=before)

    assert joined(holder, sent(rule, **given)).due_epoch_s == after


def test_a_stream_of_sends_puts_a_message_off_for_ten_delays_at_most() -> None:
    long_ago_s = NOW_S - 5 * DEBOUNCE_DELAYS_AT_MOST + 2

    assert joined(Holder("h", long_ago_s), sent("debounce", delay_s=5)).due_epoch_s == NOW_S + 2
    assert joined(Holder("h", long_ago_s), sent("debounce", delay_s=60)).due_epoch_s == NOW_S + 60


def test_a_send_does_not_hasten_a_retry() -> None:
    failed = Holder("failed", NOW_S - 9, due_epoch_s=NOW_S + 60, retrying=True)

    assert joined(failed, sent("debounce", delay_s=5)).due_epoch_s == NOW_S + 60
    assert joined(failed, sent("queue")).due_epoch_s == NOW_S + 60
    assert joined(failed, sent("replace")).due_epoch_s == NOW_S + 60


@pytest.mark.parametrize(
    ("rule", "before", "given_s", "after"),
    [
        ("replace", NOW_S + 9, None, None),
        ("replace", None, 5.0, NOW_S + 5),
        ("debounce", NOW_S + 9, 5.0, NOW_S + 5),
        ("queue", NOW_S + 9, None, None),
        ("queue", None, 5.0, None),
        ("queue", NOW_S + 9, 5.0, NOW_S + 9),
    ],
)
def test_when_what_is_joined_expires(
    rule: UniqueRule, before: float | None, given_s: float | None, after: float | None
) -> None:
    holder = Holder("h", NOW_S - 5, expires_epoch_s=before)

    assert joined(holder, sent(rule, delay_s=1, expires_s=given_s)).expires_epoch_s == after


def test_a_moment_of_expiry_is_taken_over_as_it_is() -> None:
    assert joined(WAITING, sent("replace", expires_at_epoch_s=NOW_S + 8)).expires_epoch_s == NOW_S + 8


# The time for which a key is taken at least


def test_the_key_of_a_message_is_taken_for_as_long_as_it_says() -> None:
    one = key()

    one.decide(sent("reject", for_s=60))

    assert one.window == Window("new", NOW_S, NOW_S + 60)


def test_within_that_time_a_send_is_rejected_though_nothing_is_pending() -> None:
    one = key(window=Window("ended", NOW_S - 10, NOW_S + 50))

    assert one.decide(sent("reject")) == Appended(TAKEN, "ended")


@pytest.mark.parametrize("rule", ["replace", "queue", "debounce"])
def test_within_that_time_another_message_waits_for_its_end(rule: UniqueRule) -> None:
    one = key(window=Window("ended", NOW_S - 10, NOW_S + 50))

    assert one.decide(sent(rule, for_s=60, delay_s=5)) == Appended(STORED, "new")

    assert (one.stored["new"].delay_s, one.stored["new"].deliver_at_epoch_s) == (None, NOW_S + 50)
    # Its own time begins then, so that there is one turn in each.
    assert one.window == Window("new", NOW_S + 50, NOW_S + 110)


def test_a_message_that_is_due_later_anyway_stays_so() -> None:
    one = key(window=Window("ended", NOW_S - 10, NOW_S + 50))

    one.decide(sent("queue", delay_s=70))

    assert (one.stored["new"].delay_s, one.stored["new"].deliver_at_epoch_s) == (70, None)


def test_a_message_without_a_time_of_its_own_waits_too() -> None:
    one = key(window=Window("ended", NOW_S - 10, NOW_S + 50))

    one.decide(sent("queue"))

    assert one.window == Window("new", NOW_S + 50, NOW_S + 50)


@pytest.mark.parametrize("rule", ["replace", "debounce"])
def test_whoever_joins_a_message_that_waits_for_that_end_does_not_hasten_it(rule: UniqueRule) -> None:
    waits = Holder("h", NOW_S - 5, due_epoch_s=NOW_S + 50)
    window = Window("h", NOW_S + 50, NOW_S + 110)

    assert joined(waits, sent(rule, delay_s=5), window).due_epoch_s == NOW_S + 50


def test_a_time_that_is_over_is_no_matter() -> None:
    one = key(window=Window("ended", NOW_S - 60, NOW_S))

    assert one.decide(sent("reject", for_s=60)) == Appended(STORED, "new")

    assert one.window == Window("new", NOW_S, NOW_S + 60)


# Several sends of one transaction


def test_of_two_sends_of_one_transaction_the_second_is_rejected() -> None:
    one = key()

    assert [one.decide(sent("reject", name)) for name in ("a", "b")] == [Appended(STORED, "a"), Appended(TAKEN, "a")]


@pytest.mark.parametrize("rule", ["replace", "queue", "debounce"])
def test_the_second_of_one_transaction_joins_the_first_before_it_is_stored(rule: UniqueRule) -> None:
    one = key()
    first = sent(rule, "a", args='{"n":1}', delay_s=5, reply_to="first", expires_s=9)
    second = sent(rule, "b", args='{"n":2}', delay_s=7, sender="Account/b", expires_s=20)

    assert [one.decide(message) for message in (first, second)] == [Appended(STORED, "a"), Appended(JOINED, "a")]

    stored = one.stored["a"]
    assert (list(one.stored), one.changed) == (["a"], {})
    assert (stored.id, stored.args, stored.sender, stored.reply_to) == ("a", '{"n":2}', "Account/b", "first")
    assert (stored.delay_s, stored.deliver_at_epoch_s) == (None, NOW_S + 7)
    assert (stored.expires_s, stored.expires_at_epoch_s) == (None, NOW_S + 20)


def test_the_last_of_several_that_join_counts() -> None:
    one = key(WAITING)

    one.decide(sent("replace", "a", args='{"n":1}', delay_s=5))
    one.decide(sent("replace", "b", args='{"n":2}'))

    change = one.changed["waiting"]
    assert (change.joined.args, change.due_epoch_s) == ('{"n":2}', NOW_S + 5)
