"""Keys as mutexes through `entities`: what a sender gets, who is waited for, how the holder is named."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import AlreadyProcessing, ConfigurationError, KeyConflict, MessageCancelled, SendTimeout
from entitycelery.message import Change, ChangeOutcome, Status
from entitycelery.storage.sql.url import driver_url
from tests.client.support import Account, Narrow, drain, make_entities, rung_by, serving, time_passes
from tests.waiting import eventually


def held(**options: Any) -> Any:
    """Alice's mutex: a call with a key that is one."""
    return Account.ref("alice").note.options(**{"key": "k", "unique": "reject", **options})


def log_of(entities: EntityCelery, name: str = "alice") -> list[str]:
    return entities.state(Account.ref(name)).log


# What a sender gets


def test_a_second_send_is_told_who_holds_the_key(entities: EntityCelery) -> None:
    first = held().send("one")

    with pytest.raises(AlreadyProcessing) as told:
        held().send("two")

    assert (told.value.message_id, told.value.address) == (first.id, "Account/alice")
    assert str(told.value) == f"Account/alice note: the key is taken by message {first.id}"
    assert told.value.transient is True
    drain(entities)
    assert held().send("three").id != first.id
    drain(entities)
    assert log_of(entities) == ["one", "three"]


def test_the_error_names_a_message_whose_result_can_be_waited_for(entities: EntityCelery) -> None:
    held(unique_for_s=60).send("one")
    drain(entities)

    with pytest.raises(AlreadyProcessing) as told:
        held().send("two")

    reply = entities.reply(str(told.value.message_id))
    assert reply is not None
    assert reply.status == "done"


@pytest.mark.parametrize("rule", ["replace", "queue"])
def test_a_send_that_joins_gives_the_message_that_was_there(entities: EntityCelery, rule: str) -> None:
    first, second = held(unique=rule).send("one"), held(unique=rule).send("two")

    assert second.id == first.id
    drain(entities)
    assert first.result() == second.result() == ["two"]


def test_debounced_sends_run_once_with_the_last_arguments(entities: EntityCelery) -> None:
    sent = [held(unique="debounce", delay_s=60).send(str(number)) for number in range(5)]

    assert len({one.id for one in sent}) == 1
    assert drain(entities) == 0
    time_passes(entities, 61)
    assert drain(entities) == 1
    assert log_of(entities) == ["4"]


def test_a_debounced_message_that_many_send_is_not_put_off_for_ever(entities: EntityCelery) -> None:
    sent = held(unique="debounce", delay_s=60).send("0")
    for number in range(1, 40):
        time_passes(entities, 30)
        drain(entities)
        if entities.reply(sent.id):
            break
        held(unique="debounce", delay_s=60).send(str(number))

    assert number * 30 == 600


def test_at_most_one_turn_begins_within_the_time_for_which_a_key_is_taken(entities: EntityCelery) -> None:
    first = held(unique="queue", unique_for_s=timedelta(minutes=1)).send("one")
    drain(entities)
    second = held(unique="queue", unique_for_s=60).send("two")

    assert drain(entities) == 0
    assert second.id != first.id
    assert held(unique="queue", unique_for_s=60).send("three").id == second.id
    time_passes(entities, 61)
    drain(entities)
    assert log_of(entities) == ["one", "three"]


def test_whoever_asks_for_a_message_that_was_there_gets_its_result(entities: EntityCelery) -> None:
    held(unique="queue").send("one")

    with serving(entities):
        assert held(unique="queue").ask("two")[-1] == "two"


def test_two_who_ask_at_once_both_get_an_answer(entities: EntityCelery) -> None:
    answers: list[list[str]] = []
    asking = [
        threading.Thread(target=lambda n=n: answers.append(held(unique="replace").ask(f"number {n}"))) for n in range(2)
    ]
    for thread in asking:
        thread.start()
    eventually(entities.messages)
    with serving(entities):
        for thread in asking:
            thread.join(30)

    assert len(answers) == 2


def test_an_ask_is_rejected_as_a_send_is(entities: EntityCelery) -> None:
    held().send("one")

    with pytest.raises(AlreadyProcessing):
        held().ask("two")


def test_on_an_event_loop_it_is_the_same(entities: EntityCelery) -> None:
    async def both() -> list[str]:
        first = await held(unique="queue").asend("one")
        asked = asyncio.create_task(held(unique="queue").aask("two"))
        while not asked.done():
            await asyncio.to_thread(drain, entities)
        answer: list[str] = await asked
        assert await first.aresult() == answer or "two" in answer
        return answer

    assert asyncio.run(asyncio.wait_for(both(), 60))[-1] == "two"


def test_celerys_result_is_that_of_the_message_that_was_there(entities: EntityCelery) -> None:
    first = held(unique="queue").delay("one")

    assert held(unique="queue").delay("two").id == first.id
    assert held(unique="queue").apply_async(("three",), countdown=60).id == first.id


def test_of_many_that_are_sent_at_once_none_is_stored_when_one_is_rejected(entities: EntityCelery) -> None:
    holder = held().send("one")
    others = [Account.ref("bob").deposit.prepare(5), held(key="free").prepare("two")]

    with pytest.raises(AlreadyProcessing) as told:
        entities.send_many([*others, held().prepare("three")])

    assert told.value.message_id == holder.id
    assert [message.id for message in entities.messages()] == [holder.id]


def test_of_many_that_are_sent_at_once_each_has_its_message(entities: EntityCelery) -> None:
    waiting = held(unique="queue").send("one")

    plain, joined, again = entities.send_many(
        [Account.ref("bob").deposit.prepare(5), held(unique="queue").prepare("two"), held(key="l").prepare("three")]
    )

    assert joined.id == waiting.id
    assert {message.id for message in entities.messages()} == {plain.id, waiting.id, again.id}


def test_a_message_that_joins_needs_no_room(entities: EntityCelery) -> None:
    def add(key: str) -> Any:
        return Narrow.ref("n").add.options(key=key, unique="queue").send(1)

    first = add("a")
    add("b")

    assert add("a").id == first.id


def test_a_send_rings_for_what_it_joins(entities: EntityCelery) -> None:
    held(unique="replace", delay_s=600).send("one")
    rung = rung_by(entities)

    held(unique="replace", delay_s=0).send("two")

    assert rung.shards == [entities.envelope.shard(Account.ref("alice").deposit.identity()[0])]


def test_on_a_callers_connection_the_key_is_taken_if_the_caller_commits(entities: EntityCelery, store_url: str) -> None:
    engine = create_engine(driver_url(store_url))
    with Session(engine) as session:
        held(connection=session).send("one")
        session.rollback()
        second = held(connection=session).send("two")
        with pytest.raises(AlreadyProcessing):
            held(connection=session).send("three")
        session.commit()
    engine.dispose()

    assert [message.id for message in entities.messages()] == [second.id]


def test_a_store_that_is_away_is_a_send_timeout(cluster_name: str) -> None:
    url = "postgresql://postgres@127.0.0.1:1/nowhere"
    entities = make_entities(url, cluster_name, auto_migrate=False, send_timeout_s=0.1, send_retries=1)

    with pytest.raises(SendTimeout, match=r"after 2 attempt\(s\)"):
        held().send("one")

    entities.close()


# What is refused


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"key": "k", "unique": "Reject"}, "unique is one of reject, replace, queue, debounce, got 'Reject'"),
        ({"unique": "reject"}, "unique='reject' is about a key: give key="),
        ({"key": "k", "unique_for_s": 5}, "give unique="),
        ({"key": "k", "unique": "reject", "unique_for_s": -1}, "unique_for_s is a number of seconds"),
        ({"key": "k", "unique": "debounce"}, "give delay_s="),
        ({"key": "k", "unique": "debounce", "deliver_at": datetime.now(UTC)}, "give delay_s="),
        ({"key": "", "unique": "reject"}, "a key must not be empty"),
    ],
)
def test_options_that_make_no_sense_are_refused(entities: EntityCelery, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Account.ref("alice").note.options(**options).send("one")

    assert entities.messages() == []


def test_options_are_put_together_in_any_order(entities: EntityCelery) -> None:
    call = Account.ref("alice").note.options(unique="debounce").options(delay_s=60).options(key="k")

    assert call.send("one").id == call.send("two").id


def test_a_task_id_does_not_go_with_it(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="no task_id"):
        held().apply_async(("one",), task_id="mine")


def test_the_same_key_without_unique_is_another(entities: EntityCelery) -> None:
    plain = held().options().send("one")
    ordinary = Account.ref("alice").note.options(key="k").send("one")

    assert plain.id != ordinary.id
    with pytest.raises(KeyConflict):
        Account.ref("alice").note.options(key="k").send("two")


# The holder by its key


def test_a_call_with_its_key_names_the_message_that_holds_it(entities: EntityCelery) -> None:
    first = held().send("one")

    assert entities.cancel(held()) == Change(first.id, ChangeOutcome.CANCELLED, Status.CANCELLED)

    with pytest.raises(MessageCancelled):
        first.result()
    assert entities.cancel(held()) == Change("", ChangeOutcome.UNKNOWN, None)
    assert held().send("two").id != first.id


def test_the_message_that_holds_a_key_is_rescheduled_by_it(entities: EntityCelery) -> None:
    sent = held(delay_s=600).send("one")

    assert entities.reschedule(held(), delay_s=0) == Change(sent.id, ChangeOutcome.RESCHEDULED, None)

    drain(entities)
    assert log_of(entities) == ["one"]


def test_within_its_time_a_key_names_a_message_that_has_ended(entities: EntityCelery) -> None:
    sent = held(unique_for_s=60).send("one")
    drain(entities)

    assert entities.cancel(held()) == Change(sent.id, ChangeOutcome.FINISHED, Status.DONE)


def test_a_call_with_unique_and_no_key_names_no_message(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="may mean many messages"):
        entities.cancel(Account.ref("alice").note.options(unique="reject"))


# Inside a turn


class Router(Entity):
    seen: list[str] = []

    @handler
    def forward(self, text: str, unique: str = "reject") -> None:
        self.seen.append(text)
        delay_s = 0 if unique == "debounce" else None
        options: dict[str, Any] = {"key": "k", "unique": unique, "delay_s": delay_s}
        Account.ref("alice").note.options(**options).send(text)

    @handler
    def ask_for_the_id(self, how: str) -> str:
        call = Account.ref("alice").note.options(key="k", unique="queue")
        return str(call.send("one").id if how == "send" else call.delay("one").id)

    @handler
    def poll(self, left: int) -> None:
        self.seen.append(str(left))
        if left:
            Router.ref(self.turn.id).poll.options(key="poll", unique="reject").send(left - 1)


@pytest.fixture
def routed(entities: EntityCelery) -> EntityCelery:
    entities.register(Router)
    return entities


def test_a_turn_whose_message_is_rejected_has_failed(routed: EntityCelery) -> None:
    holder = held(delay_s=600).send("one")
    failed, later = Router.ref("r").forward.send("two"), Router.ref("r").forward.send("three", unique="replace")
    drain(routed)

    with pytest.raises(AlreadyProcessing, match=f"has a key that {holder.id} holds"):
        failed.result()
    assert later.result() is None
    assert routed.state(Router.ref("r")).seen == ["three"]


def test_a_turns_message_joins_the_one_that_waits(routed: EntityCelery) -> None:
    waiting = held(unique="replace", delay_s=600).send("one")
    Router.ref("r").forward.send("two", unique="replace")
    drain(routed)

    [message] = routed.messages()
    assert (message.id, message.args.replace(" ", "")) == (waiting.id, '{"text":"two"}')


@pytest.mark.parametrize("how", ["send", "delay"])
def test_a_turn_is_told_that_it_cannot_know_the_id(routed: EntityCelery, how: str) -> None:
    asked = Router.ref("r").ask_for_the_id.send(how)
    drain(routed)

    with pytest.raises(ConfigurationError, match="has no id: only the turn's commit finds out"):
        asked.result()


def test_an_entity_sends_itself_its_own_key_again_and_again(routed: EntityCelery) -> None:
    Router.ref("r").poll.options(key="poll", unique="reject").send(5)

    with pytest.raises(AlreadyProcessing):
        Router.ref("r").poll.options(key="poll", unique="reject").send(9)
    drain(routed)

    assert routed.state(Router.ref("r")).seen == ["5", "4", "3", "2", "1", "0"]


def test_what_many_turns_of_one_batch_debounce_is_one_message(routed: EntityCelery) -> None:
    for number in range(20):
        Router.ref(f"r{number % 4}").forward.send(str(number), unique="debounce")
    drain(routed)

    assert len(log_of(routed)) < 20
    assert set(log_of(routed)) <= {str(number) for number in range(20)}


# Dead letters


class Fragile(Entity):
    count: int = 0

    @handler(autoretry_for=(ValueError,), max_retries=0)
    def fail(self) -> None:
        raise ValueError("broken")


def test_a_letter_is_left_while_another_message_holds_its_key(entities: EntityCelery) -> None:
    entities.register(Fragile)
    call = Fragile.ref("f").fail.options(key="k", unique="reject")
    first = call.send()
    drain(entities)
    second = call.options(delay_s=600).send()

    assert entities.retry_dead(first.id) == []
    entities.cancel(second)
    assert entities.retry_dead(first.id) == [first.id]
