"""A signal never finds the worker in the middle of what its handler would wait for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from entitycelery.worker.shield import ENDS_WORKER, Shield, ShieldedLock


class Handler:
    """Keeps which signals came; what is called then may raise or replace it."""

    def __init__(self) -> None:
        self.came: list[int] = []

    def __call__(self, number: int, _frame: object) -> None:
        self.came.append(number)


@pytest.fixture
def handler() -> Iterator[Handler]:
    before = {number: signal.getsignal(number) for number in ENDS_WORKER}
    handler = Handler()
    for number in ENDS_WORKER:
        signal.signal(number, handler)
    yield handler
    for number, handle in before.items():
        signal.signal(number, handle)


@pytest.fixture
def shield(handler: Handler) -> Shield:
    shield = Shield()
    shield.install()
    return shield


def test_a_signal_outside_is_handled_at_once(shield: Shield, handler: Handler) -> None:
    with shield:
        pass
    signal.raise_signal(signal.SIGQUIT)

    assert handler.came == [signal.SIGQUIT]


def test_signals_in_the_middle_are_handled_at_the_outermost_end_in_their_order(
    shield: Shield, handler: Handler
) -> None:
    with shield:
        signal.raise_signal(signal.SIGQUIT)
        with shield:
            signal.raise_signal(signal.SIGINT)
        within = list(handler.came)

    assert within == []
    assert handler.came == [signal.SIGQUIT, signal.SIGINT]


def test_a_handler_finds_the_lock_of_its_own_thread_free(shield: Shield, handler: Handler) -> None:
    lock = ShieldedLock(shield)

    def take(number: int, _frame: object) -> None:
        with lock:
            handler.came.append(number)

    signal.signal(signal.SIGQUIT, take)
    shield.install()
    with lock:
        signal.raise_signal(signal.SIGQUIT)

    assert handler.came == [signal.SIGQUIT]


def test_the_second_signal_has_the_handler_that_the_first_has_set(shield: Shield, handler: Handler) -> None:
    later = Handler()
    signal.signal(signal.SIGQUIT, lambda *_: signal.signal(signal.SIGINT, later))
    shield.install()

    with shield:
        signal.raise_signal(signal.SIGQUIT)
        signal.raise_signal(signal.SIGINT)

    assert handler.came == []
    assert later.came == [signal.SIGINT]


def test_an_error_of_the_handler_leaves_the_shield_usable(shield: Shield, handler: Handler) -> None:
    def fail(number: int, _frame: object) -> None:
        raise SystemExit(number)

    signal.signal(signal.SIGTERM, fail)
    shield.install()
    with pytest.raises(SystemExit), shield:
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGQUIT)

    assert handler.came == [signal.SIGQUIT]


def test_other_threads_are_not_waited_for(shield: Shield, handler: Handler) -> None:
    entered, go = threading.Event(), threading.Event()

    def stay() -> None:
        with shield:
            entered.set()
            go.wait(30)

    other = threading.Thread(target=stay)
    other.start()
    entered.wait(30)
    signal.raise_signal(signal.SIGQUIT)
    go.set()
    other.join()

    assert handler.came == [signal.SIGQUIT]


def test_elsewhere_than_on_the_main_thread_handlers_stay(handler: Handler) -> None:
    shield = Shield()
    thread = threading.Thread(target=shield.install)
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGQUIT) is handler
