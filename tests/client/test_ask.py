"""Asking: the handler's answer, or the one of several reasons why there is none (yet)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import celery.exceptions
import pytest
from celery.result import allow_join_result, denied_join_result

from entitycelery import EntityCelery, Sent
from entitycelery.exceptions import (
    HandlerFailed,
    MessageCancelled,
    MessageExpired,
    ReplyTimeout,
    UnknownMessage,
)
from entitycelery.message import Status
from tests.client.support import Account, InsufficientFundsError, drain, make_entities, serving, time_passes
from tests.storage.support import commit_of, ended


def cancel_all(entities: EntityCelery) -> None:
    for message in entities.messages():
        with entities.store.drain_session(message.shard) as session:
            for mailbox in session.claim(10):
                turns = [ended(mail, status=Status.CANCELLED) for mail in mailbox.mail]
                session.commit([commit_of(mailbox, *turns, state=None)], last=True)
                session.release([mailbox])


def test_ask_returns_what_the_handler_returns(entities: EntityCelery) -> None:
    alice = Account.ref("alice")

    with serving(entities):
        assert alice.deposit.ask(100) == 100
        assert alice.withdraw.ask(amount=30) == 70
        assert alice.note.ask("hello") == ["hello"]
        assert alice.adeposit.ask(5) == 75
        assert alice.close.ask() is None


def test_a_send_can_be_waited_for_later(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(5)
    drain(entities)

    assert sent.result() == 5
    assert sent.result(timeout_s=0) == 5


def test_an_exception_of_the_handler_is_raised_as_its_own_class(entities: EntityCelery) -> None:
    alice = Account.ref("alice")

    with serving(entities):
        alice.deposit.ask(5)
        with pytest.raises(InsufficientFundsError) as caught:
            alice.withdraw.ask(6)

    assert caught.value.args == (5,)
    assert "in withdraw" in str(caught.value.__cause__)
    assert entities.state(alice).balance == 5


def test_an_ask_that_is_not_answered_in_time_leaves_its_message_stored(entities: EntityCelery) -> None:
    alice = Account.ref("alice")

    with pytest.raises(ReplyTimeout, match=r"is stored and not answered after 0\.05 s") as caught:
        alice.deposit.options(timeout_s=0.05).ask(5)

    assert isinstance(caught.value, TimeoutError)
    assert [m.id for m in entities.messages(alice)] == [caught.value.message_id]
    drain(entities)
    assert entities.state(alice).balance == 5


def test_the_setting_is_the_longest_wait_of_an_ask_without_one_of_its_own(store_url: str, cluster_name: str) -> None:
    entities = make_entities(store_url, cluster_name, ask_timeout_s=0.05)

    with pytest.raises(ReplyTimeout, match=r"0\.05 s"):
        Account.ref("alice").deposit.ask(5)
    with pytest.raises(ReplyTimeout, match=r"0\.05 s"):
        Account.ref("alice").deposit.send(5).result()

    entities.close()


def test_a_repeated_ask_with_a_key_gets_the_first_answer(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="order-17")
    with pytest.raises(ReplyTimeout):
        call.options(timeout_s=0.05).ask(5)
    drain(entities)

    assert call.ask(5) == 5
    assert call.send(5).result(timeout_s=5) == 5
    assert entities.state(Account.ref("alice")).balance == 5


def test_two_who_ask_with_one_key_at_once_get_one_answer(entities: EntityCelery) -> None:
    call = Account.ref("alice").deposit.options(key="order-17")

    with serving(entities), ThreadPoolExecutor(8) as pool:
        answers = {future.result(30) for future in [pool.submit(call.ask, 5) for _ in range(8)]}

    assert answers == {5}


def test_unknown_not_yet_expired_cancelled_and_failed_are_different_answers(entities: EntityCelery) -> None:
    deposit = Account.ref("alice").deposit
    cancelled = deposit.send(1)
    cancel_all(entities)
    expired = deposit.options(expires_s=10).send(2)
    time_passes(entities, 11)
    failed = Account.ref("alice").withdraw.send(1000)
    drain(entities)
    pending = deposit.send(3)
    unknown: Sent[int] = Sent("never-sent", deposit._operation, entities.client)

    with pytest.raises(MessageCancelled):
        cancelled.result(timeout_s=5)
    with pytest.raises(MessageExpired):
        expired.result(timeout_s=5)
    with pytest.raises(InsufficientFundsError):
        failed.result(timeout_s=5)
    with pytest.raises(ReplyTimeout):
        pending.result(timeout_s=0.05)
    with pytest.raises(UnknownMessage):
        unknown.result(timeout_s=5)


def test_each_answer_can_be_looked_at_without_waiting(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(1)
    assert entities.reply(sent.id) is None
    drain(entities)

    reply = entities.reply(sent.id)
    assert reply is not None
    assert (reply.status, reply.result, str(reply.address)) == (Status.DONE, "1", "Account/alice")
    with pytest.raises(UnknownMessage, match="never-sent was never stored, or its reply is older"):
        entities.reply("never-sent")


def test_a_purged_reply_is_unknown(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(1)
    drain(entities)
    time_passes(entities, 1000)
    assert entities.store.purge_replies(999, 100) == 1

    with pytest.raises(UnknownMessage):
        sent.result(timeout_s=5)


def test_more_may_ask_at_once_than_there_are_connections_to_listen_on(store_url: str, cluster_name: str) -> None:
    entities = make_entities(store_url, cluster_name, connections=3, send_timeout_s=20)

    with serving(entities), ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(Account.ref(n).deposit.ask, n) for n in range(10)]
        assert [future.result(60) for future in asked] == list(range(10))

    entities.close()


def test_delay_gives_celerys_own_handle(entities: EntityCelery) -> None:
    handle = Account.ref("alice").deposit.delay(5)
    assert (handle.ready(), handle.successful()) == (False, False)
    with pytest.raises(celery.exceptions.TimeoutError):
        handle.get(timeout=0.05)

    drain(entities)

    assert (handle.ready(), handle.successful()) == (True, True)
    assert handle.get(timeout=5) == 5


def test_celerys_handle_raises_what_the_handler_raised(entities: EntityCelery) -> None:
    handle = Account.ref("alice").withdraw.delay(5)
    drain(entities)

    assert handle.failed()
    with pytest.raises(InsufficientFundsError):
        handle.get(timeout=5)


def test_inside_a_celery_task_ask_follows_celerys_rule_for_get(entities: EntityCelery) -> None:
    deposit = Account.ref("alice").deposit
    sent = deposit.send(1)

    with denied_join_result():
        with pytest.raises(RuntimeError, match=r"Never call result\.get"):
            deposit.ask(5)
        with pytest.raises(RuntimeError, match=r"Never call result\.get"):
            sent.result()
        with allow_join_result(), serving(entities):
            assert deposit.ask(5) == 6

    assert entities.state(Account.ref("alice")).balance == 6


def test_a_query_sees_what_an_earlier_ask_of_its_caller_did(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    assert alice.statement() == 0

    with serving(entities):
        for expected in range(1, 31):
            alice.deposit.ask(1)
            assert alice.statement() == expected
            assert entities.state(alice).balance == expected


def test_what_a_query_changes_is_dropped(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    drain(entities)

    assert alice.statement(times=3) == 15
    assert alice.statement() == 5


def test_a_failure_without_an_importable_class_is_handler_failed(entities: EntityCelery) -> None:
    sent = Account.ref("alice").note.send("x")
    [message] = entities.messages()
    with entities.store.drain_session(message.shard) as session:
        [mailbox] = session.claim(10)
        gone = ended(mailbox.mail[0], status=Status.DEAD)
        session.commit([commit_of(mailbox, gone, state=None)], last=True)

    with pytest.raises(HandlerFailed, match=r"builtins\.ValueError: broken") as caught:
        sent.result(timeout_s=5)

    assert (caught.value.address, caught.value.message_id) == ("Account/alice", sent.id)
