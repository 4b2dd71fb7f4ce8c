"""Signals: named events that complete once, and what an entity does then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from entitycelery import Entity, EntityCelery, Failure, SignalOutcome, handler
from entitycelery.exceptions import (
    ConfigurationError,
    MalformedMessage,
    MessageCancelled,
    SignalCancelled,
    UnknownSignal,
)
from tests.client.support import change, drain, time_passes
from tests.runtime.support import HOOKS, PassingError, dead_letters
from tests.waiting import eventually

COMPLETED, EARLY, OVER, NOTED = SignalOutcome


class Loan(Entity):
    amount: int = 0
    log: list[str] = []

    @handler
    def act(self, hook: str) -> object:
        return HOOKS[hook](self)

    @handler
    def request(self, amount: int) -> str:
        self.amount = amount
        return self.expect(
            "approval",
            then=self.on_approval,
            on_timeout=self.on_silence,
            on_failure=self.on_refusal,
            timeout_s=60,
        )

    @handler
    def on_approval(self, approved: bool) -> str:
        self.log.append(f"{self.turn.signal} {approved}")
        return f"approved {approved}"

    @handler
    def on_silence(self) -> str:
        self.log.append("silence")
        return "nobody said a word"

    @handler
    def on_refusal(self, failure: Failure) -> None:
        self.log.append(f"{failure.reason}: {failure.message}")

    @handler
    def anything(self) -> None:
        self.log.append("anything")

    @handler
    async def aon_approval(self, approved: bool) -> None:
        self.log.append(f"async {approved}")

    @handler(autoretry_for=(PassingError,), max_retries=1, retry_backoff=10, retry_jitter=False)
    def fails(self, value: object) -> object:
        self.log.append(f"tried {value}")
        return HOOKS["fails"](self)

    @handler(autoretry_for=(PassingError,), max_retries=1, retry_backoff=10, retry_jitter=False)
    def is_late(self) -> object:
        return HOOKS["late"](self)

    @handler
    def decide(self) -> str:
        self.expect("approval", then=self.on_approval, on_timeout=self.on_silence, timeout_s=60)
        return self.reply_later()

    @handler
    def other(self, value: str) -> None:
        self.log.append(value)


@pytest.fixture(autouse=True)
def loans(entities: EntityCelery) -> None:
    entities.register(Loan)


def loan(name: str = "l") -> Loan:
    return Loan.ref(name)


def request(entities: EntityCelery) -> str:
    sent = loan().request.send(5)
    drain(entities)
    return sent.result(timeout_s=5)


def act(entities: EntityCelery, hook: Callable[[Any], Any], name: str = "l") -> Any:
    """One turn of a loan."""
    HOOKS["act"] = hook
    sent = loan(name).act.send("act")
    drain(entities)
    return sent.result(timeout_s=5)


def log(entities: EntityCelery) -> list[str]:
    return entities.state(loan()).log


def names(entities: EntityCelery) -> list[str]:
    """What waits, as the rows say, which is what the entities themselves say."""
    listed = [signal.name for signal in entities.signals()]
    assert sorted(listed) == sorted(one.name for one in entities.status(loan()).signals)
    return listed


# Completion


def test_a_signal_goes_on_with_its_value_once(entities: EntityCelery) -> None:
    token = request(entities)
    assert entities.status(loan()).status == "suspended"
    [waiting] = entities.signals(loan())
    assert (waiting.name, waiting.then, waiting.token) == ("approval", "on_approval", token)
    assert waiting.expires_epoch_s == pytest.approx(waiting.since_epoch_s + 60, abs=5)

    assert entities.signal(token).succeed(True) is COMPLETED
    drain(entities)

    assert entities.signal(token).succeed(False) is OVER
    assert entities.signal(loan(), "approval").cancel() is OVER
    time_passes(entities, 100)
    assert drain(entities) == 0
    assert log(entities) == ["approval True"]
    assert names(entities) == []
    assert entities.status(loan()).status == "idle"


def test_of_two_completions_before_the_turn_the_first_one_wins(entities: EntityCelery) -> None:
    token = request(entities)

    outcomes = [entities.signal(token).succeed(True), entities.signal(loan(), "approval").fail("no")]
    drain(entities)

    assert outcomes == [COMPLETED, OVER]
    assert log(entities) == ["approval True"]


def test_of_many_who_complete_it_at_once_one_wins_and_the_others_are_told(entities: EntityCelery) -> None:
    token = request(entities)
    outcomes: list[SignalOutcome] = []
    together = threading.Barrier(8)

    def complete(number: int) -> None:
        together.wait()
        outcomes.append(entities.signal(token).fail(str(number)))

    threads = [threading.Thread(target=complete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drain(entities)

    assert sorted(outcomes) == [COMPLETED, *[OVER] * 7]
    assert len(log(entities)) == 1


def test_it_is_completed_by_name_without_a_token(entities: EntityCelery) -> None:
    request(entities)

    assert entities.signal("Loan/l", "approval").succeed(True) is COMPLETED

    drain(entities)
    assert log(entities) == ["approval True"]


def test_a_failed_signal_goes_on_with_its_error_and_a_cancelled_one_with_that(entities: EntityCelery) -> None:
    assert entities.signal(request(entities)).fail(ValueError("not today")) is COMPLETED
    drain(entities)
    assert entities.signal(request(entities)).fail("just no") is COMPLETED
    drain(entities)
    assert entities.signal(request(entities)).cancel() is COMPLETED
    drain(entities)

    assert log(entities) == [
        "HandlerFailed: not today",
        "SignalFailed: just no",
        "SignalCancelled: the signal 'approval' of Loan/l was cancelled",
    ]
    assert dead_letters(entities) == []


def test_an_asynchronous_handler_goes_on_too(entities: EntityCelery) -> None:
    token = act(entities, lambda self: self.expect("approval", then=self.aon_approval))

    entities.signal(token).succeed(True)
    drain(entities)

    assert log(entities) == ["async True"]


def test_a_handler_without_an_argument_drops_the_value(entities: EntityCelery) -> None:
    token = act(entities, lambda self: self.expect("approval", then=self.anything))

    entities.signal(token).succeed({"what": ["ever"]})
    drain(entities)

    assert log(entities) == ["anything"]


def test_any_json_value_arrives_as_it_was_sent(entities: EntityCelery) -> None:
    values: list[object] = [None, {"a": None, "b": [1, 2.5, "ü", {}]}, [], 10**20, "x" * 10_000]
    for value in values:
        token = act(entities, lambda self: self.expect("value", then=self.fails))
        HOOKS["fails"] = lambda self: None
        entities.signal(token).succeed(value)
        drain(entities)

    assert log(entities) == [f"tried {value}" for value in values]


def test_other_messages_are_served_meanwhile(entities: EntityCelery) -> None:
    request(entities)

    act(entities, lambda self: self.log.append("served"))

    assert log(entities) == ["served"]
    assert names(entities) == ["approval"]


# Time-outs


def test_a_signal_that_nobody_completes_times_out_once(entities: EntityCelery) -> None:
    token = request(entities)
    time_passes(entities, 61)

    # By the clock it is over, whether or not the turn has been.
    assert entities.signal(token).succeed(True) is OVER
    drain(entities)

    assert entities.signal(token).succeed(True) is OVER
    assert log(entities) == ["silence"]
    assert names(entities) == []


def test_what_was_completed_in_time_does_not_time_out(entities: EntityCelery) -> None:
    token = request(entities)
    entities.signal(token).succeed(True)
    time_passes(entities, 61)

    drain(entities)

    assert log(entities) == ["approval True"]


def test_a_signal_without_a_handler_for_its_end_is_a_dead_letter_with_the_reason(entities: EntityCelery) -> None:
    def expect(name: str, timeout_s: float | None = None) -> str:
        return str(act(entities, lambda self: self.expect(name, then=self.on_approval, timeout_s=timeout_s)))

    expect("late", 5)
    time_passes(entities, 6)
    drain(entities)
    entities.signal(expect("failed")).fail(PassingError("no"))
    entities.signal(expect("cancelled")).cancel()
    drain(entities)

    assert [reason for _, reason, _ in dead_letters(entities)] == ["SignalTimeout", "HandlerFailed", "SignalCancelled"]
    assert names(entities) == []


def test_a_completed_signal_that_has_to_wait_is_not_completed_again(entities: EntityCelery) -> None:
    token = request(entities)
    entities.signal(token).succeed(True)
    [row] = entities.messages(loan())

    assert entities.reschedule(row.id, delay_s=30).outcome == "rescheduled"

    assert entities.signal(token).succeed(False) is OVER
    time_passes(entities, 31)
    drain(entities)
    assert log(entities) == ["approval True"]


def test_a_time_out_that_is_tried_again_is_a_time_out_still(entities: EntityCelery) -> None:
    HOOKS["late"] = _raise_passing
    token = act(
        entities, lambda self: self.expect("approval", then=self.on_approval, on_timeout=self.is_late, timeout_s=60)
    )
    time_passes(entities, 61)
    drain(entities)

    assert entities.signal(token).succeed(True) is OVER

    HOOKS["late"] = lambda self: self.log.append("late")
    time_passes(entities, 11)
    drain(entities)
    assert log(entities) == ["late"]


def _raise_passing(self: Loan) -> None:
    raise PassingError


# Retries, dead letters, crashes


def test_what_follows_is_tried_again_and_is_a_dead_letter_in_the_end_which_can_be_retried(
    entities: EntityCelery,
) -> None:
    HOOKS["fails"] = _raise_passing
    token = act(entities, lambda self: self.expect("value", then=self.fails, on_timeout=self.on_silence, timeout_s=60))
    entities.signal(token).succeed(7)
    drain(entities)
    assert entities.signal(token).succeed(8) is OVER
    time_passes(entities, 61)
    drain(entities)
    [(message_id, _, attempts)] = dead_letters(entities)
    assert attempts == 2
    assert names(entities) == []

    HOOKS["fails"] = lambda self: self.log.append("at last")
    assert entities.retry_dead(message_id) == [message_id]
    drain(entities)

    assert log(entities) == ["tried 7", "at last"]
    assert entities.signal(token).succeed(9) is OVER


def test_an_expectation_is_made_with_the_turn_or_not_at_all(entities: EntityCelery) -> None:
    tokens: list[str] = []

    def expect_and_fail(self: Loan) -> None:
        tokens.append(self.expect("approval", then=self.on_approval))
        raise PassingError

    with pytest.raises(PassingError):
        act(entities, expect_and_fail)

    assert names(entities) == []
    assert entities.messages(loan()) == []
    # Its token is good all the same: it is the signal that will be expected next.
    assert entities.signal(tokens[0]).succeed(True) is EARLY


# Early completions


def test_a_completion_waits_for_whoever_will_expect_it(entities: EntityCelery) -> None:
    signal = entities.signal(loan(), "approval")
    assert [signal.succeed(True), signal.succeed(False)] == [EARLY, OVER]
    drain(entities)
    assert signal.succeed(False) is OVER
    assert entities.exists(loan()) is False

    request(entities)
    drain(entities)

    assert log(entities) == ["approval True"]
    assert names(entities) == []
    assert signal.succeed(False) is OVER


def test_a_completion_whose_turn_is_still_to_come_when_it_is_expected_counts(entities: EntityCelery) -> None:
    loan().request.send(5)
    assert entities.signal(loan(), "approval").succeed(True) is EARLY

    # Handled first, the expectation finds the row under its own id.
    drain(entities)
    drain(entities)

    assert log(entities) == ["approval True"]
    assert names(entities) == []
    time_passes(entities, 61)
    assert drain(entities) == 0


def test_an_early_failure_and_one_that_nobody_handles(entities: EntityCelery) -> None:
    entities.signal(loan(), "approval").fail("no")
    entities.signal(loan(), "bare").fail("never")
    drain(entities)

    request(entities)
    act(entities, lambda self: self.expect("bare", then=self.on_approval))
    drain(entities)

    assert log(entities) == ["SignalFailed: no"]
    assert [reason for _, reason, _ in dead_letters(entities)] == ["SignalFailed"]


def test_a_token_is_there_before_the_signal_is_expected(entities: EntityCelery) -> None:
    token = entities.signal_token(loan(), "approval")
    assert token == act(entities, lambda self: self.turn.signal_token("approval"))
    assert entities.signal(token).succeed(True) is EARLY

    assert request(entities) == token
    drain(entities)

    assert log(entities) == ["approval True"]


def test_a_name_can_be_expected_again_and_old_tokens_mean_the_old_round(entities: EntityCelery) -> None:
    first = request(entities)
    entities.signal(first).succeed(True)
    drain(entities)

    second = request(entities)

    assert second != first
    assert entities.signal(first).succeed(False) is OVER
    assert entities.signal(second).succeed(False) is COMPLETED
    drain(entities)
    assert log(entities) == ["approval True", "approval False"]


# Withdrawal and deletion


def test_what_is_withdrawn_does_not_come(entities: EntityCelery) -> None:
    token = request(entities)

    withdraw: Callable[[Loan], list[bool]] = lambda self: [self.turn.withdraw("approval") for _ in range(2)]  # noqa: E731
    assert act(entities, withdraw) == [True, False]

    assert entities.signal(token).succeed(True) is OVER
    time_passes(entities, 61)
    assert drain(entities) == 0
    assert log(entities) == names(entities) == []
    assert entities.messages(loan()) == []


def test_a_withdrawal_that_is_claimed_together_with_the_completion_wins(entities: EntityCelery) -> None:
    token = request(entities)
    HOOKS["act"] = lambda self: self.turn.withdraw("approval")
    loan().act.send("act")
    entities.signal(token).succeed(True)
    change(entities.store, "UPDATE {message} SET seq = seq + 1000 WHERE operation = 'entity.signal'")

    drain(entities)

    assert log(entities) == []
    assert entities.messages(loan()) == []


def test_a_row_that_cannot_be_read_is_left_out_of_the_list(
    entities: EntityCelery, caplog: pytest.LogCaptureFixture
) -> None:
    request(entities)
    act(entities, lambda loan: loan.expect("approval", then=loan.anything), "m")

    change(entities.store, "UPDATE {message} SET args = '[1]' WHERE entity_id = 'l'")

    assert [str(signal.address) for signal in entities.signals(limit=1)] == ["Loan/m"]
    assert caplog.text.count("a signal of Loan/l is left out: the row of a signal cannot be read") == 1


def test_signals_are_listed_from_behind_an_entity(entities: EntityCelery) -> None:
    for name in "abc":
        act(entities, lambda loan: loan.expect("approval", then=loan.anything), name)

    first = entities.signals(limit=2)

    assert [str(signal.address) for signal in first] == ["Loan/a", "Loan/b"]
    assert [str(one.address) for one in entities.signals(after=str(first[-1].address))] == ["Loan/c"]


def test_an_entity_that_is_deleted_expects_nothing_and_its_successor_is_not_meant(entities: EntityCelery) -> None:
    token = request(entities)

    entities.delete(loan())
    drain(entities)

    assert entities.signal(token).succeed(True) is OVER
    assert names(entities) == []
    assert entities.messages(loan()) == []
    again = request(entities)
    assert again != token
    assert entities.signal(again).succeed(True) is COMPLETED
    drain(entities)
    assert log(entities) == ["approval True"]


def test_an_expectation_withdrawn_in_its_own_turn_was_never_there(entities: EntityCelery) -> None:
    def both(self: Loan) -> str:
        self.expect("approval", then=self.on_approval)
        self.turn.withdraw("approval")
        return self.expect("approval", then=self.aon_approval)

    token = act(entities, both)
    assert names(entities) == ["approval"]

    assert entities.signal(token).succeed(True) is COMPLETED

    drain(entities)
    assert log(entities) == ["async True"]


# From turns


def test_a_turn_completes_the_signal_of_another_entity_with_its_commit(entities: EntityCelery) -> None:
    token = request(entities)

    def complete_and_fail(self: Loan) -> None:
        entities.signal(token).succeed(False)
        raise PassingError

    with pytest.raises(PassingError):
        act(entities, complete_and_fail, "other")
    assert names(entities) == ["approval"]

    assert act(entities, lambda self: entities.signal(token).succeed(True), "other") == NOTED
    drain(entities)

    assert log(entities) == ["approval True"]


def test_a_turn_completes_early_and_a_second_one_changes_nothing(entities: EntityCelery) -> None:
    for value in (True, False):
        act(entities, lambda self, value=value: entities.signal("Loan/l", "approval").succeed(value), "other")

    request(entities)
    drain(entities)

    assert log(entities) == ["approval True"]


def test_an_entity_completes_its_own_signal(entities: EntityCelery) -> None:
    def both(self: Loan) -> object:
        return entities.signal(self.expect("approval", then=self.on_approval)).succeed(True)

    assert act(entities, both) == NOTED
    drain(entities)

    assert log(entities) == ["approval True"]


# Answers


def test_what_follows_a_signal_answers_the_message_that_began_it(entities: EntityCelery) -> None:
    sent = loan().decide.send()
    drain(entities)
    assert entities.reply(sent.id) is None
    assert entities.status(loan()).status == "suspended"

    entities.signal(loan(), "approval").succeed(True)
    drain(entities)

    assert sent.result(timeout_s=5) == "approved True"
    assert entities.messages(loan()) == []


def test_an_ask_waits_for_the_answer_that_comes_later(entities: EntityCelery) -> None:
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(loan().decide.options(timeout_s=30).ask()))
    asking.start()
    eventually(lambda: (drain(entities) and False) or names(entities) == ["approval"])

    entities.signal(loan(), "approval").succeed(False)
    drain(entities)
    asking.join()

    assert answers == ["approved False"]


def test_a_time_out_answers_and_so_does_the_failure_of_what_follows(entities: EntityCelery) -> None:
    late = loan().decide.send()
    drain(entities)
    time_passes(entities, 61)
    drain(entities)
    assert late.result(timeout_s=5) == "nobody said a word"

    cancelled = loan().decide.send()
    drain(entities)
    entities.signal(loan(), "approval").cancel()
    drain(entities)

    with pytest.raises(SignalCancelled, match="the signal 'approval' of Loan/l was cancelled"):
        cancelled.result(timeout_s=5)


def test_an_answer_is_handed_on_from_signal_to_signal(entities: EntityCelery) -> None:
    def second(self: Loan) -> object:
        self.expect("second", then=self.on_approval)
        return self.reply_later()

    HOOKS["fails"] = second

    def first(self: Loan) -> object:
        self.expect("first", then=self.fails)
        return self.reply_later()

    HOOKS["act"] = first
    sent = loan().act.send("act")
    drain(entities)
    entities.signal(loan(), "first").succeed(1)
    drain(entities)
    assert entities.reply(sent.id) is None

    entities.signal(loan(), "second").succeed(True)
    drain(entities)

    assert sent.result(timeout_s=5) == "approved True"
    assert entities.messages(loan()) == []


def test_of_two_signals_the_first_one_answers_and_the_other_goes_on_without(entities: EntityCelery) -> None:
    def either(self: Loan) -> object:
        self.expect("one", then=self.on_approval)
        self.expect("two", then=self.on_approval)
        return self.reply_later()

    HOOKS["act"] = either
    sent = loan().act.send("act")
    drain(entities)

    # Both in one batch.
    entities.signal(loan(), "two").succeed(False)
    entities.signal(loan(), "one").succeed(True)
    drain(entities)

    assert sent.result(timeout_s=5) in ("approved True", "approved False")
    assert sorted(log(entities)) == ["one True", "two False"]


def test_one_of_several_signals_can_be_the_one_that_answers(entities: EntityCelery) -> None:
    def both(self: Loan) -> object:
        self.expect("one", then=self.on_approval)
        self.expect("two", then=self.on_approval)
        return self.reply_later(by="two")

    HOOKS["act"] = both
    sent = loan().act.send("act")
    drain(entities)
    entities.signal(loan(), "one").succeed(True)
    drain(entities)
    assert entities.reply(sent.id) is None

    entities.signal(loan(), "two").succeed(False)
    drain(entities)

    assert sent.result(timeout_s=5) == "approved False"
    with pytest.raises(ConfigurationError, match="leaves its answer to a signal, and the turn expects none"):
        act(entities, lambda self: [self.expect("a", then=self.on_approval), self.reply_later(by="b")])


def test_who_is_to_be_answered_by_what_is_withdrawn_is_told(entities: EntityCelery) -> None:
    sent = loan().decide.send()
    drain(entities)

    act(entities, lambda self: self.turn.withdraw("approval"))

    with pytest.raises(MessageCancelled):
        sent.result(timeout_s=5)
    deleted = loan().decide.send()
    drain(entities)
    entities.delete(loan())
    drain(entities)
    with pytest.raises(MessageCancelled):
        deleted.result(timeout_s=5)


def test_a_message_that_is_answered_later_does_not_run_again(entities: EntityCelery) -> None:
    sent = loan().decide.send()
    drain(entities)

    assert entities.reschedule(sent, delay_s=0).outcome == "finished"
    assert drain(entities) == 0
    assert entities.cancel(sent).outcome == "cancelled"

    entities.signal(loan(), "approval").succeed(True)
    drain(entities)
    assert log(entities) == ["approval True"]
    with pytest.raises(MessageCancelled):
        sent.result(timeout_s=5)


# Bad input


def test_a_value_that_does_not_fit_is_refused_and_the_signal_waits_on(entities: EntityCelery) -> None:
    token = request(entities)

    with pytest.raises(MalformedMessage, match=r"argument 'approved' of Loan\.on_approval: Expected `bool`, got `str`"):
        entities.signal(token).succeed("yes")

    assert entities.signal(token).succeed(True) is COMPLETED


def test_an_early_value_that_does_not_fit_fails_what_follows_and_not_who_expects_it(entities: EntityCelery) -> None:
    entities.signal(loan(), "approval").succeed("yes")
    drain(entities)

    request(entities)
    drain(entities)

    [pending] = entities.messages(loan())
    assert pending.last_failure is not None
    assert "Expected `bool`" in pending.last_failure.message


@pytest.mark.parametrize("token", ["", "x", "x.y", "ü.ü", "a" * 10_000, "WyJMb2FuIl0.AAAA"])
def test_what_is_no_token_is_refused(entities: EntityCelery, token: str) -> None:
    with pytest.raises(UnknownSignal, match="is no signal's token of this cluster"):
        entities.signal(token)


def test_a_token_that_was_changed_by_a_letter_is_refused(entities: EntityCelery) -> None:
    token = entities.signal_token(loan(), "approval")

    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        with pytest.raises(UnknownSignal):
            entities.signal(changed)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda self: self.expect("", then=self.on_approval), "a signal has a name of 1 to 200 printable characters"),
        (lambda self: self.expect("a\nb", then=self.on_approval), "a signal has a name of 1 to 200 printable"),
        (lambda self: self.expect("a", then=self.log), "takes a handler of the entity itself"),
        (lambda self: self.expect("a", then=Loan.ref("x").other), "takes a handler of the entity itself"),
        (lambda self: self.expect("a", then=self.other.options(key="k")), "takes a handler of the entity itself"),
        (
            lambda self: self.expect("a", then=self.other, on_timeout=self.other, timeout_s=5),
            r"on_timeout of expect\('a', ...\) is called with no argument, and Loan.other needs 1",
        ),
        (lambda self: self.expect("a", then=self.other, on_timeout=self.anything), "has on_timeout and no timeout_s"),
        (lambda self: self.expect("a", then=self.other, timeout_s=-1), "timeout_s is a number of seconds from 0"),
        (lambda self: [self.expect("a", then=self.other) for _ in range(2)], "expects the signal 'a' already"),
        (lambda self: self.reply_later(), "leaves its answer to a signal, and the turn expects none"),
    ],
)
def test_an_expectation_that_makes_no_sense_is_refused(
    entities: EntityCelery, call: Callable[[Any], Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        act(entities, call)

    assert names(entities) == []


def test_a_signal_that_waits_is_not_cancelled_like_a_message(entities: EntityCelery) -> None:
    request(entities)
    [row] = entities.messages(loan())

    with pytest.raises(ConfigurationError, match=r"is a signal that waits: cancel it by entities\.signal"):
        entities.cancel(row.id)

    assert names(entities) == ["approval"]


def test_there_is_an_end_to_how_many_signals_an_entity_expects(entities: EntityCelery) -> None:
    def many(self: Loan) -> None:
        for number in range(1_001):
            self.expect(f"s{number}", then=self.on_approval)

    with pytest.raises(ConfigurationError, match="expects at most 1,000 signals"):
        act(entities, many)


def test_names_that_were_used_up_are_forgotten_and_their_ids_never_used_again(entities: EntityCelery) -> None:
    def expect(name: str) -> str:
        return str(act(entities, lambda self: self.expect(name, then=self.on_approval)))

    first = expect("s0")
    entities.signal(first).succeed(True)
    for number in range(1, 103):
        token = expect(f"s{number}")
        entities.signal(token).succeed(True)
    drain(entities)

    assert expect("s0") != first
    assert entities.signal(first).succeed(True) is OVER
    assert names(entities) == ["s0"]


def test_signals_that_cannot_be_read_fail_their_turns_and_deletion_works_all_the_same(entities: EntityCelery) -> None:
    request(entities)
    change(entities.store, "UPDATE {state} SET signals = '[]'")

    with pytest.raises(Exception, match="the stored signals of an entity cannot be read"):
        act(entities, lambda self: self.expect("other", then=self.on_approval))

    entities.delete(loan())
    drain(entities)
    assert not entities.exists(loan())
