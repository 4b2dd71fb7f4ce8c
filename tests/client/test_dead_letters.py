"""Dead letters through `entities`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entitycelery import DeadLetterFilter, Entity, EntityCelery, handler
from entitycelery.exceptions import KeyConflict, UnknownMessage
from tests.client.support import drain, make_entities, rung_by, time_passes
from tests.storage.support import change

works: list[str] = []


class DownError(Exception):
    """The shop is closed."""


class Order(Entity):
    paid: int = 0
    attempts: list[int] = []

    @handler(autoretry_for=(DownError,), max_retries=0)
    def pay(self, amount: int) -> int:
        if "pay" not in works:
            raise DownError("try later")
        self.paid += amount
        self.attempts.append(self.turn.attempt)
        return self.paid

    @handler(autoretry_for=(DownError,), max_retries=0)
    def ship(self) -> None:
        raise DownError("no parcel")


@pytest.fixture(autouse=True)
def the_shop_is_closed() -> Iterator[None]:
    works.clear()
    yield
    works.clear()


@pytest.fixture
def shop(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    made = make_entities(store_url, cluster_name)
    made.register(aliases=("Bill",))(Order)
    yield made
    made.close()


def test_a_retried_letter_is_handled_under_its_id_and_key(shop: EntityCelery) -> None:
    order = Order.ref("1").pay.options(key="17")
    sent = order.send(5)
    drain(shop)
    with pytest.raises(DownError):
        sent.result()

    works.append("pay")
    assert shop.retry_dead(sent.id) == [sent.id]
    assert order.send(5).id == sent.id
    drain(shop)

    assert sent.result() == 5
    assert order.ask(5) == 5
    assert shop.state(Order.ref("1")) == Order(paid=5, attempts=[0])
    assert shop.dead_letters() == []
    with pytest.raises(KeyConflict):
        order.send(6)


def test_a_retried_letter_that_fails_again_is_a_dead_letter_again(shop: EntityCelery) -> None:
    sent = Order.ref("1").pay.send(5)
    for _ in range(2):
        drain(shop)
        assert [letter.attempts for letter in shop.dead_letters()] == [1]
        assert shop.retry_dead([sent.id]) == [sent.id]

    assert shop.dead_letters() == []
    assert [message.attempt for message in shop.messages()] == [0]


def test_a_letter_tells_what_it_was_and_why_it_died(shop: EntityCelery) -> None:
    sent = Order.ref("1").pay.send(5)
    drain(shop)

    letter = shop.dead_letter(sent.id)

    assert (letter.id, str(letter.address), letter.operation) == (sent.id, "Order/1", "pay")
    assert (letter.args.replace(" ", ""), letter.reason, letter.attempts) == ('{"amount":5}', "HandlerFailed", 1)
    assert letter.failure.message == "try later"
    assert letter.died_at_epoch_s >= letter.sent_at_epoch_s
    with pytest.raises(UnknownMessage, match="no dead letter nobody"):
        shop.dead_letter("nobody")


def test_letters_are_listed_in_the_order_of_sending_in_pages(shop: EntityCelery) -> None:
    ids = [Order.ref(n).pay.send(n).id for n in range(5)]
    drain(shop)

    first = shop.dead_letters(limit=3)
    rest = shop.dead_letters(after=first[-1].seq, limit=3)

    assert [letter.id for letter in (*first, *rest)] == ids
    assert shop.dead_letters(after=rest[-1].seq) == []


def test_letters_are_found_by_what_they_are(shop: EntityCelery) -> None:
    one, two = Order.ref("1").pay.send(5), Order.ref("2").ship.send()
    drain(shop)

    def found(wanted: DeadLetterFilter) -> list[str]:
        assert [letter.id for letter in shop.dead_letters(wanted)] == shop.dead_letter_ids(wanted)
        return shop.dead_letter_ids(wanted)

    assert found(DeadLetterFilter(type="Order")) == [one.id, two.id]
    assert found(DeadLetterFilter(type="Bill")) == [one.id, two.id]
    assert found(DeadLetterFilter(type="Account")) == found(DeadLetterFilter(type="Gone")) == []
    assert found(DeadLetterFilter(type="Order", entity_id="2")) == [two.id]
    assert found(DeadLetterFilter(operation="pay")) == [one.id]
    assert found(DeadLetterFilter(reason="HandlerFailed")) == [one.id, two.id]
    assert found(DeadLetterFilter(reason="Quarantined")) == []
    assert found(DeadLetterFilter(ids=(two.id, "nobody"))) == [two.id]
    assert found(DeadLetterFilter(ids=())) == []
    assert found(DeadLetterFilter(operation="pay", entity_id="2")) == []


def test_letters_under_an_alias_are_found_by_the_types_name(shop: EntityCelery) -> None:
    sent = Order.ref("1").pay.send(5)
    drain(shop)
    change(shop.store, "UPDATE {dead_letter} SET type = 'Bill'")

    assert shop.dead_letter_ids(DeadLetterFilter(type="Order")) == [sent.id]
    assert shop.dead_letter_ids(DeadLetterFilter(type="Account")) == []


def test_a_retry_rings_for_the_shards_of_the_letters(shop: EntityCelery) -> None:
    Order.ref("1").pay.send(5)
    drain(shop)
    rung = rung_by(shop)

    shop.retry_dead(DeadLetterFilter())

    [message] = shop.messages()
    assert rung.shards == [message.shard]


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "", "x" * 1_000_000], ids=["NUL", "surrogate", "empty", "long"])
def test_what_no_message_can_be_called_is_not_found(shop: EntityCelery, text: str) -> None:
    assert shop.cancel(text).outcome == shop.reschedule(text, delay_s=1).outcome == "unknown"
    assert shop.retry_dead(text) == shop.discard_dead([text]) == []
    for name in ("type", "entity_id", "operation", "reason"):
        assert shop.dead_letters(DeadLetterFilter(**{name: text})) == []
        assert shop.dead_letter_ids(DeadLetterFilter(**{name: text})) == []


def test_letters_are_found_by_their_age(shop: EntityCelery) -> None:
    old = Order.ref("1").pay.send(5)
    drain(shop)
    time_passes(shop, 100)
    young = Order.ref("1").pay.send(6)
    drain(shop)

    assert shop.dead_letter_ids(DeadLetterFilter(older_than_s=60)) == [old.id]
    assert shop.dead_letter_ids(DeadLetterFilter(younger_than_s=60)) == [young.id]
    assert shop.dead_letter_ids(DeadLetterFilter(older_than_s=200)) == []


def test_a_retry_by_filter_takes_each_letter_once(shop: EntityCelery) -> None:
    ids = [Order.ref(n).pay.send(n).id for n in range(3)]
    other = Order.ref("other").ship.send()
    drain(shop)

    assert shop.retry_dead(DeadLetterFilter(operation="pay")) == ids
    assert shop.dead_letter_ids(DeadLetterFilter()) == [other.id]
    assert [message.id for message in shop.messages()] == ids


def test_a_discarded_letter_is_gone_and_its_failure_stays_the_answer(shop: EntityCelery) -> None:
    order = Order.ref("1").pay.options(key="17")
    sent = order.send(5)
    drain(shop)

    assert shop.discard_dead(sent.id) == [sent.id]
    assert shop.discard_dead(sent.id) == shop.retry_dead(sent.id) == []

    with pytest.raises(DownError):
        sent.result()
    assert order.send(5).id == sent.id
    assert shop.messages() == []


def test_the_reply_of_a_letter_is_kept_until_it_is_discarded(shop: EntityCelery) -> None:
    sent = Order.ref("1").pay.send(5)
    drain(shop)
    time_passes(shop, 1000)
    assert shop.store.purge_replies(100, 10) == 0

    shop.discard_dead(sent.id)

    assert shop.store.purge_replies(100, 10) == 1
    with pytest.raises(UnknownMessage):
        shop.reply(sent.id)
