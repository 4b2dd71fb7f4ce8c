"""What an entity keeps of its signals, and tokens."""

from __future__ import annotations

import re

import pytest

from entitycelery.address import Address
from entitycelery.exceptions import StateConflict, UnknownSignal
from entitycelery.message import Asked
from entitycelery.signal_token import SignalId, SignalTokens
from entitycelery.signals import Continuations, Event, Expected, Outcome, Signals

TO_GO_ON = Continuations("then")


def expected(message_id: str, *asked: Asked) -> Expected:
    return Expected(message_id, TO_GO_ON, 1.0, asked=asked)


def kept(signals: Signals) -> Signals:
    """As another turn finds them."""
    return Signals(signals.dump())


def test_nothing_expected_is_stored_as_nothing() -> None:
    assert Signals(None).dump() is None
    assert Signals(None).expected_by("m") is None


def test_a_round_is_expected_until_it_is_over() -> None:
    signals = Signals(None)
    assert (signals.current("a"), signals.coming("a"), signals.can_be_completed("a", 0)) == (0, 0, True)

    signals.expect("a", expected("m"), 0)
    signals = kept(signals)
    assert signals.expected_by("m") == ("a", expected("m"))
    assert (signals.coming("a"), signals.can_be_completed("a", 0), signals.can_be_completed("a", 1)) == (0, True, False)

    signals.end("a", 2.0)
    signals = kept(signals)
    assert signals.expected_by("m") is None
    assert (signals.current("a"), signals.coming("a")) == (0, 1)
    assert [signals.can_be_completed("a", number) for number in (0, 1, 2)] == [False, True, False]


def test_an_early_outcome_is_one_of_the_round_to_come() -> None:
    signals = Signals(None)
    signals.keep_early(Event("a", 0, outcome=Outcome("cancelled")), 1.0)

    signals = kept(signals)

    assert (signals.coming("a"), signals.can_be_completed("a", 0), signals.can_be_completed("a", 1)) == (
        0,
        False,
        False,
    )


def test_whoever_was_answered_is_asked_no_more() -> None:
    one, other = Asked("q1", "channel"), Asked("q2")
    signals = Signals(None)
    signals.expect("a", expected("m1", one), 0)
    signals.expect("b", expected("m2", one, other), 0)
    assert signals.asked() == {one, other}

    signals.end("a", 2.0)

    assert signals.asked() == {other}
    assert kept(signals).asked() == {other}


def test_what_is_withdrawn_leaves_its_questions_to_others() -> None:
    question = Asked("q")
    signals = Signals(None)
    signals.expect("a", expected("m1", question), 0)
    signals.expect("b", expected("m2", question), 0)

    assert signals.withdraw("a", 2.0) == []
    assert signals.withdraw("b", 2.0) == [question]
    assert signals.disarmed == ["m1", "m2"]


def test_the_oldest_names_are_forgotten_and_their_numbers_are_not() -> None:
    signals = Signals(None)
    for number in range(101):
        signals.expect(f"s{number}", expected(f"m{number}"), signals.coming(f"s{number}"))
        signals.end(f"s{number}", float(number))

    signals = kept(signals)

    assert signals.entry("s0") is None
    assert signals.coming("s0") == 1
    assert signals.coming("never") == 1
    assert signals.can_be_completed("s0", 0) is False


@pytest.mark.parametrize("stored", ["", "[]", "{", '{"entries":{"a":{}}}', "[" * 100_000])
def test_what_cannot_be_read_says_so(stored: str) -> None:
    with pytest.raises(StateConflict, match="the stored signals of an entity cannot be read"):
        Signals(stored).expected_by("m")


# Tokens

SIGNAL = SignalId(Address("Loan", "ü/1"), "approval", 3)


def tokens(cluster: str = "shop", secret: bytes = b"secret") -> SignalTokens:
    return SignalTokens(cluster, lambda: secret)


def test_a_token_never_changes() -> None:
    # A wire format: tokens are in mails that were sent long ago.
    assert tokens().make(SIGNAL) == "WyJMb2FuIiwiw7wvMSIsImFwcHJvdmFsIiwzXQ.1IZsBYjZmxKE0GgD4-hN5Q"


def test_a_token_can_stand_in_a_url_and_says_what_it_said() -> None:
    token = tokens().make(SIGNAL)

    assert re.fullmatch(r"[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]{22}", token)
    assert tokens().read(token) == SIGNAL


def test_tokens_of_another_cluster_or_secret_mean_nothing() -> None:
    for other in (tokens(cluster="bank"), tokens(secret=b"other")):
        with pytest.raises(UnknownSignal):
            tokens().read(other.make(SIGNAL))


def test_the_secret_is_asked_for_once_and_only_when_it_is_needed() -> None:
    asked: list[None] = []

    def secret() -> bytes:
        asked.append(None)
        return b"secret"

    made = SignalTokens("shop", secret)
    assert not asked
    made.read(made.make(SIGNAL))

    assert len(asked) == 1
