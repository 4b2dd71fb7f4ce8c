"""Sending: what returns is stored, once for each key, when and as long as the options say."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, KeyConflict, MailboxFull, MalformedMessage, MessageExpired
from tests.client.support import Account, Narrow, drain, make_entities, time_passes
from tests.naming import shown
from tests.storage.support import query


def operations(entities: EntityCelery) -> list[tuple[str, str, str]]:
    return [(str(m.address), m.operation, m.args.replace(" ", "")) for m in entities.messages()]


def test_a_send_that_returned_is_stored(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(5)

    assert operations(entities) == [("Account/alice", "deposit", '{"amount":5}')]
    assert [m.id for m in entities.messages()] == [sent.id]


def test_messages_of_one_sender_are_handled_in_the_order_of_its_sends(entities: EntityCelery) -> None:
    words = [f"word {number}" for number in range(50)]
    for word in words:
        Account.ref("alice").note.send(word)

    drain(entities)

    assert entities.state(Account.ref("alice")).log == words


def test_a_malformed_send_stores_nothing(entities: EntityCelery) -> None:
    with pytest.raises(MalformedMessage, match="argument 'amount'"):
        Account.ref("alice").deposit.send("five")  # type: ignore[arg-type]

    assert entities.messages() == []


def test_the_same_key_is_the_same_message(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="order-17")

    ids = {call.send(5).id, call.send(5).id, call.send(amount=5).id}

    assert len(ids) == len(entities.messages()) == 1


def test_a_key_belongs_to_its_address_and_operation(entities: EntityCelery) -> None:
    ids = {
        Account.ref("alice").deposit.options(key="k").send(5).id,
        Account.ref("bob").deposit.options(key="k").send(5).id,
        Account.ref("alice").withdraw.options(key="k").send(5).id,
        Narrow.ref("alice").add.options(key="k").send(5).id,
    }

    assert len(ids) == len(entities.messages()) == 4


def test_a_key_gets_the_first_reply_after_completion_too(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="order-17")
    first = call.send(5)
    drain(entities)

    again = call.send(5)

    assert again.id == first.id
    assert again.result(timeout_s=5) == 5
    assert drain(entities) == 0


@pytest.mark.parametrize("handled_meanwhile", [False, True])
def test_a_key_with_other_arguments_is_a_conflict(entities: EntityCelery, handled_meanwhile: bool) -> None:
    call = Account.ref("alice").deposit.options(key="order-17")
    first = call.send(5)
    if handled_meanwhile:
        drain(entities)

    with pytest.raises(KeyConflict) as caught:
        call.send(6)

    assert caught.value.address == "Account/alice"
    assert caught.value.message_id == first.id
    drain(entities)
    assert entities.state(Account.ref("alice")).balance == 5


def test_after_the_retention_time_a_key_is_new(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="order-17")
    call.send(5)
    drain(entities)
    time_passes(entities, 1000)
    entities.store.purge_replies(999, 100)

    call.send(6)
    drain(entities)

    assert entities.state(Account.ref("alice")).balance == 11


def test_a_task_id_is_a_key(entities: EntityCelery) -> None:
    deposit = Account.ref("alice").deposit

    first = deposit.apply_async((5,), task_id="my-task")
    again = deposit.apply_async((5,), task_id="my-task")

    assert first.id == again.id == "my-task"
    assert len(entities.messages()) == 1
    with pytest.raises(KeyConflict):
        deposit.apply_async((6,), task_id="my-task")
    with pytest.raises(KeyConflict):
        Account.ref("bob").deposit.apply_async((5,), task_id="my-task")


def test_a_long_task_id_is_a_key_too(entities: EntityCelery) -> None:
    deposit = Account.ref("alice").deposit

    ids = {deposit.apply_async((5,), task_id="x" * 1000).id for _ in range(2)}

    assert len(ids) == len(entities.messages()) == 1


def test_send_many_stores_all_in_order(entities: EntityCelery) -> None:
    note = Account.ref("alice").note
    words = [f"word {number}" for number in range(700)]

    sent = entities.send_many([note.prepare(word) for word in words])
    drain(entities)

    assert entities.state(Account.ref("alice")).log == words
    assert sent[-1].result(timeout_s=5) == words


def test_send_many_is_all_or_nothing(entities: EntityCelery) -> None:
    taken = Account.ref("bob").deposit.options(key="taken")
    taken.send(1)

    with pytest.raises(KeyConflict):
        entities.send_many([Account.ref("alice").deposit.prepare(5), taken.prepare(2), Narrow.ref("n").add.prepare()])

    assert operations(entities) == [("Account/bob", "deposit", '{"amount":1}')]


def test_send_many_with_one_key_twice_is_one_message(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="k")

    first, second = entities.send_many([call.prepare(5), call.prepare(5)])

    assert first.id == second.id
    assert len(entities.messages()) == 1


def test_send_many_of_nothing_is_nothing(entities: EntityCelery) -> None:
    assert entities.send_many([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"delay_s": 60},
        {"delay_s": timedelta(minutes=1)},
        {"deliver_at": lambda: datetime.now(UTC) + timedelta(minutes=1)},
    ],
    ids=shown,
)
def test_a_delayed_message_is_not_handled_early(entities: EntityCelery, options: dict[str, Any]) -> None:
    given = {name: value() if callable(value) else value for name, value in options.items()}
    Account.ref("alice").deposit.options(**given).send(5)

    assert drain(entities) == 0
    time_passes(entities, 50)
    assert drain(entities) == 0
    time_passes(entities, 15)
    assert drain(entities) == 1


def test_a_delayed_message_lets_later_ones_pass(entities: EntityCelery) -> None:
    note = Account.ref("alice").note
    note.options(delay_s=60).send("delayed")
    note.send("at once")
    drain(entities)
    time_passes(entities, 61)
    drain(entities)

    assert entities.state(Account.ref("alice")).log == ["at once", "delayed"]


def test_an_expired_message_is_not_handled_and_its_reply_says_so(entities: EntityCelery) -> None:
    late = Account.ref("alice").deposit.options(expires_s=60).send(5)
    in_time = Account.ref("alice").deposit.options(expires_s=600).send(7)
    time_passes(entities, 61)

    drain(entities)

    with pytest.raises(MessageExpired):
        late.result(timeout_s=5)
    assert in_time.result(timeout_s=5) == 7


@pytest.mark.parametrize(
    ("given", "due_in_s"),
    [
        ({"countdown": 60}, 60),
        ({"eta": lambda: datetime.now(UTC) + timedelta(seconds=60)}, 60),
    ],
    ids=shown,
)
def test_celerys_names_of_the_options_mean_the_same(
    entities: EntityCelery, given: dict[str, Any], due_in_s: float
) -> None:
    options = {name: value() if callable(value) else value for name, value in given.items()}

    Account.ref("alice").deposit.apply_async(kwargs={"amount": 5}, **options)

    [message] = entities.messages()
    assert message.due_at_epoch_s is not None
    assert message.due_at_epoch_s - message.sent_at_epoch_s == pytest.approx(due_in_s, abs=5)


@pytest.mark.parametrize("expires", [60, 60.5, lambda: datetime.now(UTC) + timedelta(seconds=60)], ids=shown)
def test_celerys_expires_is_seconds_or_an_instant(entities: EntityCelery, expires: Any) -> None:
    Account.ref("alice").deposit.apply_async((5,), expires=expires() if callable(expires) else expires)
    epoch = entities.store.dialect.to_epoch
    statement = f"SELECT {epoch('expires_at')} - {epoch('sent_at')} FROM {{message}}"  # noqa: S608 - constants

    [(left_s,)] = query(entities.store, statement)

    assert left_s == pytest.approx(60, abs=5)


def test_an_instant_of_expiry_is_stored_as_it_is_whatever_the_senders_clock_says(
    entities: EntityCelery, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = datetime.now(UTC) + timedelta(seconds=60)
    monkeypatch.setattr(time, "time", lambda: expires.timestamp() + 3600)

    Account.ref("alice").deposit.apply_async((5,), expires=expires)

    monkeypatch.undo()
    epoch = entities.store.dialect.to_epoch("expires_at")
    [(stored_s,)] = query(entities.store, f"SELECT {epoch} FROM {{message}}")  # noqa: S608 - constants
    assert stored_s == pytest.approx(expires.timestamp(), abs=0.001)


def bad_calls() -> list[tuple[str, Callable[[], object]]]:
    deposit = lambda: Account.ref("alice").deposit  # noqa: E731
    naive = datetime(2030, 1, 1)
    return [
        ("delay_s", lambda: deposit().options(delay_s=-1)),
        ("delay_s", lambda: deposit().options(delay_s=float("nan"))),
        ("delay_s", lambda: deposit().options(delay_s=float("inf"))),
        ("delay_s", lambda: deposit().options(delay_s=timedelta(days=-1))),
        ("delay_s", lambda: deposit().options(delay_s="soon")),  # type: ignore[arg-type]
        ("deliver_at", lambda: deposit().options(deliver_at=5)),  # type: ignore[arg-type]
        ("a key is a str", lambda: deposit().options(key=5)),  # type: ignore[arg-type]
        ("expires_s", lambda: deposit().options(expires_s=-1)),
        ("timeout_s", lambda: deposit().options(timeout_s=-1)),
        ("exclude each other", lambda: deposit().options(delay_s=1, deliver_at=datetime.now(UTC))),
        ("exclude each other", lambda: deposit().options(delay_s=1).options(deliver_at=datetime.now(UTC))),
        ("exclude each other", lambda: deposit().apply_async((5,), countdown=1, eta=datetime.now(UTC))),
        ("needs a time zone", lambda: deposit().options(deliver_at=naive)),
        ("needs a time zone", lambda: deposit().apply_async((5,), eta=naive)),
        ("needs a time zone", lambda: deposit().apply_async((5,), expires=naive)),
        ("key must not be empty", lambda: deposit().options(key="").send(5)),
        ("task_id must not be empty", lambda: deposit().apply_async((5,), task_id="")),
        ("queue has no meaning", lambda: deposit().apply_async((5,), queue="fast")),
        ("connection=", lambda: deposit().options(connection="here").send(5)),
        ("ask with options", lambda: deposit().options(connection="here").ask(5)),
    ]


@pytest.mark.parametrize(("why", "call"), bad_calls(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_option_is_refused_by_name_and_stores_nothing(
    sqlite_url: str, cluster_name: str, why: str, call: Callable[[], object]
) -> None:
    entities = make_entities(sqlite_url, cluster_name)

    with pytest.raises(ConfigurationError, match=why):
        call()

    assert entities.messages() == []
    entities.close()


def test_options_that_are_not_given_stay_as_they_are(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="k").options(delay_s=60).options(expires_s=600)

    call.send(5)

    assert call.send(5).id == Account.ref("alice").deposit.options(key="k").send(5).id
    assert drain(entities) == 0


def test_a_full_mailbox_refuses_and_says_who(entities: EntityCelery) -> None:
    narrow = Narrow.ref("n")
    narrow.add.send()
    narrow.add.send()

    with pytest.raises(MailboxFull, match="Narrow/n has 2 pending messages") as caught:
        narrow.add.send()

    assert caught.value.transient
    Narrow.ref("other").add.send()
    assert len(entities.messages(narrow)) == 2
    drain(entities)
    narrow.add.send()


def test_a_duplicate_is_never_too_much_for_a_mailbox(entities: EntityCelery) -> None:
    narrow = Narrow.ref("n")
    keyed = narrow.add.options(key="k")
    first = keyed.send()
    narrow.add.send()

    assert keyed.send().id == first.id
    with pytest.raises(MailboxFull):
        narrow.add.options(key="new").send()
    assert len(entities.messages(narrow)) == 2


def test_the_setting_bounds_every_mailbox_that_has_no_bound_of_its_own(store_url: str, cluster_name: str) -> None:
    entities = make_entities(store_url, cluster_name, mailbox_capacity=3)
    for _ in range(3):
        Account.ref("alice").deposit.send(1)

    with pytest.raises(MailboxFull, match="3 pending"):
        Account.ref("alice").deposit.send(1)
    with pytest.raises(MailboxFull, match="2 pending"):
        entities.send_many([Narrow.ref("n").add.prepare() for _ in range(3)])

    assert len(entities.messages()) == 3
    entities.close()
