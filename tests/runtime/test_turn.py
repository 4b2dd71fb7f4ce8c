"""A turn: its state, its reply and its mail are stored together, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import (
    AskRefused,
    ConfigurationError,
    KeyConflict,
    MailboxFull,
    SerializationFailed,
    StateConflict,
)
from tests.client.support import Account, InsufficientFundsError, Narrow, drain, time_passes
from tests.naming import shown
from tests.runtime.support import HOOKS, PassingError, Puppet, make_puppets
from tests.storage.support import query


def puppet(name: str = "p") -> Puppet:
    return Puppet.ref(name)


def test_state_reply_and_mail_of_a_turn_are_stored_in_one_commit(entities: EntityCelery) -> None:
    def send_and_look(self: Puppet) -> int:
        self.count = 7
        Account.ref("alice").deposit.send(5)
        # Nothing is visible to anybody before the commit.
        assert [str(m.address) for m in entities.messages()] == ["Puppet/p"]
        assert not entities.exists(puppet())
        return 1

    HOOKS["go"] = send_and_look
    sent = puppet().act.send("go")

    drain(entities)

    assert sent.result(timeout_s=5) == 1
    assert entities.state(puppet()).count == 7
    assert entities.state(Account.ref("alice")).balance == 5


def test_a_failed_turn_drops_its_changes_and_its_mail(entities: EntityCelery) -> None:
    def change_send_and_fail(self: Puppet) -> None:
        self.count = 1000
        Account.ref("alice").deposit.send(5)
        raise InsufficientFundsError(3)

    HOOKS["fail"] = change_send_and_fail
    before, failed, after = puppet().add.send(1), puppet().act.send("fail"), puppet().add.send(1)

    drain(entities)

    assert (before.result(timeout_s=5), after.result(timeout_s=5)) == (1, 2)
    with pytest.raises(InsufficientFundsError):
        failed.result(timeout_s=5)
    assert entities.state(puppet()) == Puppet(count=2)
    assert not entities.exists(Account.ref("alice"))


@pytest.mark.parametrize("exc", [SystemExit(3), MemoryError(), RecursionError("deep"), AssertionError()])
def test_whatever_a_handler_raises_fails_its_message_alone(entities: EntityCelery, exc: BaseException) -> None:
    def fail(self: Puppet) -> None:
        raise exc

    HOOKS["fail"] = fail
    failed, after = puppet().act.send("fail"), puppet().add.send(1)

    drain(entities)

    with (
        pytest.raises(Exception, match=type(exc).__name__) if isinstance(exc, SystemExit) else pytest.raises(type(exc))
    ):
        failed.result(timeout_s=5)
    assert after.result(timeout_s=5) == 1


def test_a_state_that_would_not_load_again_is_a_failed_reply_and_not_committed(entities: EntityCelery) -> None:
    HOOKS["spoil"] = lambda self: setattr(self, "count", "many")
    failed, after = puppet().act.send("spoil"), puppet().add.send(1)

    drain(entities)

    with pytest.raises(StateConflict, match="field 'count'"):
        failed.result(timeout_s=5)
    assert after.result(timeout_s=5) == 1


@pytest.mark.parametrize("bad", [object(), float("nan"), "a\0b", "\ud800"], ids=shown)
def test_a_result_or_a_state_that_cannot_be_written_is_a_failed_reply(entities: EntityCelery, bad: object) -> None:
    HOOKS["answer"] = lambda self: bad
    HOOKS["keep"] = lambda self: setattr(self, "anything", bad)
    answered, kept, after = puppet().act.send("answer"), puppet().act.send("keep"), puppet().add.send(1)

    drain(entities)

    with pytest.raises(SerializationFailed, match=r"the result of Puppet\.act"):
        answered.result(timeout_s=5)
    with pytest.raises(SerializationFailed, match="field 'anything' of Puppet"):
        kept.result(timeout_s=5)
    assert after.result(timeout_s=5) == 1
    assert entities.state(puppet()) == Puppet(count=1)


def test_the_turn_says_who_and_what_it_is(entities: EntityCelery) -> None:
    seen: list[object] = []

    def look(self: Puppet) -> None:
        turn = self.turn
        seen.extend([str(turn.address), turn.id, turn.message_id, turn.attempt, turn.sender, turn.fence])
        if turn.id == "p":
            puppet("other").act.send("look")

    HOOKS["look"] = look
    sent = puppet().act.send("look")
    drain(entities)

    assert seen[:5] == ["Puppet/p", "p", sent.id, 0, None]
    assert seen[6:8] == ["Puppet/other", "other"]
    assert seen[10] == "Puppet/p"


def test_the_fence_grows_with_every_claim(entities: EntityCelery) -> None:
    fences: list[int] = []
    HOOKS["fence"] = lambda self: fences.append(self.turn.fence)
    for _ in range(3):
        puppet().act.send("fence")
        drain(entities)

    assert fences == sorted(set(fences))


def test_delete_ends_the_entity_and_keeps_its_version(entities: EntityCelery) -> None:
    HOOKS["delete"] = lambda self: self.turn.delete()
    puppet().add.send(5)
    drain(entities)
    before = entities.status(puppet()).version

    puppet().act.send("delete")
    drain(entities)
    after = entities.status(puppet())
    assert (after.exists, after.version > before) == (False, True)

    again = puppet().add.send(1)
    drain(entities)
    assert again.result(timeout_s=5) == 1
    assert entities.status(puppet()).version > after.version


def test_a_message_behind_a_delete_in_the_same_batch_finds_a_new_entity(entities: EntityCelery) -> None:
    HOOKS["delete"] = lambda self: self.turn.delete()
    entities.send_many([puppet().add.prepare(5), puppet().act.prepare("delete"), puppet().add.prepare(1)])

    drain(entities)

    assert entities.state(puppet()) == Puppet(count=1)


def test_a_turn_that_deletes_and_fails_deletes_nothing(entities: EntityCelery) -> None:
    def delete_and_fail(self: Puppet) -> None:
        self.turn.delete()
        raise PassingError

    HOOKS["fail"] = delete_and_fail
    entities.send_many([puppet().add.prepare(5), puppet().act.prepare("fail")])

    drain(entities)

    assert entities.state(puppet()).count == 5


def test_ask_inside_a_turn_is_refused_with_a_sentence_that_says_what_to_do(entities: EntityCelery) -> None:
    asks = {
        "ask": lambda self: Account.ref("alice").deposit.ask(5),
        "own ask": lambda self: self.add.ask(5),
        "result": lambda self: Account.ref("alice").deposit.send(5).result(),
    }
    HOOKS.update(asks)
    refused = [puppet().act.send(name) for name in asks]

    drain(entities)

    sentences = ["use send, and have Account/alice send its answer back", "use send", "for ever"]
    for sent, why in zip(refused, sentences, strict=True):
        with pytest.raises(AskRefused, match=why):
            sent.result(timeout_s=5)
    assert not entities.exists(Account.ref("alice"))


def test_sends_inside_a_turn_take_keys_delays_and_many_at_once(entities: EntityCelery) -> None:
    def send(self: Puppet) -> None:
        for _ in range(2):
            Account.ref("keyed").deposit.options(key="once").send(5)
        Account.ref("delayed").deposit.options(delay_s=60).send(5)
        entities.send_many([Account.ref("many").note.prepare(word) for word in "abc"])
        self.add.send(10)
        Account.ref("celery").deposit.delay(5)

    HOOKS["send"] = send
    for _ in range(2):
        puppet().act.send("send")
        drain(entities)

    assert entities.state(Account.ref("keyed")).balance == 5
    assert not entities.exists(Account.ref("delayed"))
    assert entities.state(Account.ref("many")).log == ["a", "b", "c"] * 2
    assert entities.state(puppet()).count == 20
    assert entities.state(Account.ref("celery")).balance == 10
    time_passes(entities, 61)
    drain(entities)
    assert entities.state(Account.ref("delayed")).balance == 10


def test_a_send_inside_a_turn_is_never_on_another_connection(entities: EntityCelery) -> None:
    HOOKS["send"] = lambda self: Account.ref("alice").deposit.options(connection="mine").send(5)
    sent = puppet().act.send("send")

    drain(entities)

    with pytest.raises(ConfigurationError, match=r"part of the turn's commit: leave options\(connection"):
        sent.result(timeout_s=5)


def test_handlers_call_each_other_directly_in_a_turn(entities: EntityCelery) -> None:
    HOOKS["call"] = lambda self: self.add(5) + self.add(5)
    sent = puppet().act.send("call")

    drain(entities)

    assert sent.result(timeout_s=5) == 15
    assert entities.state(puppet()).count == 10


def test_nothing_can_be_sent_when_the_turn_is_over(entities: EntityCelery) -> None:
    kept: list[Puppet] = []
    HOOKS["keep"] = lambda self: kept.append(self)
    puppet().act.send("keep")
    drain(entities)

    with pytest.raises(ConfigurationError, match="is over: nothing more can be part of it"):
        kept[0].add.send(5)


def test_refused_mail_fails_its_turn_and_the_turns_behind_it_run_again(entities: EntityCelery) -> None:
    Account.ref("alice").deposit.options(key="taken").send(1)
    drain(entities)

    def conflict(self: Puppet) -> None:
        self.count += 100
        Account.ref("alice").deposit.options(key="taken").send(2)

    def overflow(self: Puppet) -> None:
        self.count += 100
        for _ in range(3):
            Narrow.ref("n").add.send()

    HOOKS.update(conflict=conflict, overflow=overflow)
    names = ["conflict", "overflow"]
    sent = entities.send_many(
        [puppet().add.prepare(1), *(puppet().act.prepare(name) for name in names), puppet().add.prepare(1)]
    )

    drain(entities)

    assert sent[0].result(timeout_s=5) == 1
    with pytest.raises(KeyConflict, match="the turn's message to Account/alice deposit has a key"):
        sent[1].result(timeout_s=5)
    with pytest.raises(MailboxFull, match="the turn's message to Narrow/n add found the mailbox full"):
        sent[2].result(timeout_s=5)
    assert sent[3].result(timeout_s=5) == 2
    assert entities.state(puppet()) == Puppet(count=2)
    assert not entities.exists(Narrow.ref("n"))


def test_a_turn_that_runs_while_the_one_before_it_is_refused_runs_again(store_url: str, cluster_name: str) -> None:
    entities = make_puppets(store_url, cluster_name, batch_budget_s=60)
    Account.ref("alice").deposit.options(key="taken").send(1)
    drain(entities)

    def conflict(self: Puppet) -> None:
        self.count += 100
        Account.ref("alice").deposit.options(key="taken").send(2)

    def last(self: Puppet) -> int:
        # As the watch does when a turn is long.
        [running] = entities.host.watch._watched
        running._commit(last=False)  # type: ignore[attr-defined]
        self.count += 1
        return self.count

    HOOKS.update(conflict=conflict, last=last)
    refused, sent = entities.send_many([puppet().act.prepare("conflict"), puppet().act.prepare("last")])

    drain(entities)

    with pytest.raises(KeyConflict):
        refused.result(timeout_s=5)
    assert sent.result(timeout_s=5) == 1
    assert entities.state(puppet()).log == ["last"]
    entities.close()


@pytest.mark.parametrize("other", ["p", "r"])  # "r" is in the shard of "p"
def test_of_two_turns_of_a_batch_with_one_key_and_other_arguments_the_first_is_right(
    entities: EntityCelery, other: str
) -> None:
    def conflict(amount: int) -> Callable[[Puppet], None]:
        def act(self: Puppet) -> None:
            Account.ref("alice").deposit.options(key="same").send(amount)

        return act

    HOOKS.update(first=conflict(1), second=conflict(2))
    first, second = entities.send_many([puppet().act.prepare("first"), puppet(other).act.prepare("second")])

    drain(entities)

    assert first.result(timeout_s=5) is None
    with pytest.raises(KeyConflict, match="the turn's message to Account/alice deposit has a key"):
        second.result(timeout_s=5)
    assert entities.state(Account.ref("alice")).balance == 1


def test_of_two_turns_of_a_batch_with_one_key_the_one_that_repeats_the_first_send_is_right(
    entities: EntityCelery,
) -> None:
    Account.ref("alice").deposit.options(key="taken").send(2)
    drain(entities)
    HOOKS.update(
        other=lambda self: Account.ref("alice").deposit.options(key="taken").send(1) and None,
        same=lambda self: Account.ref("alice").deposit.options(key="taken").send(2) and None,
    )
    other, same = entities.send_many([puppet().act.prepare("other"), puppet("r").act.prepare("same")])

    drain(entities)

    with pytest.raises(KeyConflict):
        other.result(timeout_s=5)
    assert same.result(timeout_s=5) is None
    assert entities.state(Account.ref("alice")).balance == 2


def test_turns_that_run_again_behind_refused_mail_keep_their_order(store_url: str, cluster_name: str) -> None:
    entities = make_puppets(store_url, cluster_name, batch_budget_s=0.02)
    Account.ref("alice").deposit.options(key="taken").send(1)
    drain(entities)

    def conflict(self: Puppet) -> None:
        Account.ref("alice").deposit.options(key="taken").send(2)

    HOOKS["conflict"] = conflict
    # Longer than the budget: the commit comes after this turn, with mail of the entity left to run.
    HOOKS["slow"] = lambda self: threading.Event().wait(0.03)
    refused, *_ = entities.send_many(
        [puppet().act.prepare("conflict"), puppet().act.prepare("slow"), *(puppet().note.prepare(w) for w in "abc")]
    )

    drain(entities)

    with pytest.raises(KeyConflict):
        refused.result(timeout_s=5)
    assert entities.state(puppet()).log == ["slow", "a", "b", "c"]
    entities.close()


def test_private_attributes_do_not_outlive_their_turn(entities: EntityCelery) -> None:
    HOOKS["cache"] = lambda self: (getattr(self, "_cache", None), setattr(self, "_cache", 5))[0]
    first, second = puppet().act.send("cache"), puppet().act.send("cache")

    drain(entities)

    assert (first.result(timeout_s=5), second.result(timeout_s=5)) == (None, None)


def test_a_view_per_type_is_readable_by_sql(entities: EntityCelery) -> None:
    Account.ref("alice").deposit.send(5)
    Account.ref("alice").note.send("hello")
    Account.ref("bob").deposit.send(7)
    Account.ref("gone").close.send()
    puppet().add.send(1)
    drain(entities)

    assert {"state_account", "state_puppet", "state_narrow"} <= set(entities.make_views())
    entities.make_views()

    rows = query(entities.store, "SELECT entity_id, balance + 1 FROM {state_account} ORDER BY entity_id")
    assert rows == [("alice", 6), ("bob", 8)]
    assert query(entities.store, "SELECT count FROM {state_puppet}") == [(1,)]
    [(log,)] = query(entities.store, "SELECT log FROM {state_account} WHERE entity_id = 'alice'")
    assert log in (["hello"], '["hello"]')


def test_a_field_may_be_called_as_a_column_of_the_view_is(store_url: str, cluster_name: str) -> None:
    class Document(Entity):
        version: str = "draft"
        entity_id: int = 7

        @handler
        def publish(self) -> None:
            self.version = "final"

    entities = make_puppets(store_url, cluster_name)
    entities.register(Document)
    Document.ref("d").publish.send()
    drain(entities)

    entities.make_views()

    assert query(entities.store, "SELECT entity_id, version_, entity_id_ FROM {state_document}") == [("d", "final", 7)]
    entities.close()
