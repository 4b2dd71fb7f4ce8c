"""Pings of real workers: who answers lives; where our own is not answered, or the broker fails, everybody does."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from entitycelery.health.ping import CONTROL_SETTINGS, Ping
from entitycelery.placement import Runner
from tests.celery.banks import BROKERS, Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import Worker
from tests.health.records import runner
from tests.waiting import eventually

OWN, OTHER = runner("own"), runner("other")
BOTH = {OWN.instance, OTHER.instance}
BROKER_SETTINGS = ("broker_url", "broker_transport", "broker_transport_options")
# Without a bound it would take for ever.
LONGEST_S = 8.0


def pinging_app(conf: Any) -> Celery:
    """An app as the runner process has it: no more than the worker's broker and how to speak with workers."""
    app = Celery("pinging", set_as_current=False)
    app.conf.update({name: conf[name] for name in (*BROKER_SETTINGS, *CONTROL_SETTINGS) if conf.get(name) is not None})
    return app


def runner_of(worker: Worker) -> Runner:
    return runner(worker.name, address=worker.node)


def ping_from(bank: Bank, own: Worker) -> Ping:
    return Ping(pinging_app(bank.app.conf), own.node)


@pytest.mark.parametrize("broker", BROKERS)
def test_a_worker_lives_while_it_answers(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=2)
    own, other = bank.start_worker(slots=1), bank.start_worker(slots=1)
    own.await_ready(), other.await_ready()
    ping = ping_from(bank, own)
    runners = [runner_of(own), runner_of(other), runner("gone")]
    both, alone = {"i-w0", "i-w1"}, {"i-w0"}

    eventually(lambda: ping.healthy(runners) == both)

    os.kill(other.pid, signal.SIGSTOP)
    began_s = time.monotonic()
    assert ping.healthy(runners) == alone
    assert time.monotonic() - began_s < LONGEST_S

    os.kill(other.pid, signal.SIGCONT)
    eventually(lambda: ping.healthy(runners) == both)

    other.kill_tree()
    assert ping.healthy(runners) == alone


def test_workers_with_an_exchange_of_their_own_are_reached(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=2, control_exchange="bank-control")
    own = bank.worker(slots=1)

    eventually(lambda: ping_from(bank, own).healthy([runner_of(own), runner("gone")]) == {"i-w0"})


def test_where_workers_have_no_remote_control_nobody_is_condemned(
    new_bank: OpenBank, caplog: pytest.LogCaptureFixture
) -> None:
    bank = new_bank("redis", entity_shards_per_group=2, worker_enable_remote_control=False)
    own = bank.worker(slots=1)

    assert ping_from(bank, own).healthy([runner_of(own), OTHER]) == {"i-w0", OTHER.instance}
    assert "our own worker did not answer" in caplog.text


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_condemns_nobody(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("pinging", broker=f"{scheme}://127.0.0.1:1/", set_as_current=False)

    with caplog.at_level(logging.WARNING, "entitycelery.health"):
        assert Ping(app, OWN.address).healthy([OWN, OTHER]) == BOTH

    assert "no runner was pinged" in caplog.text


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_does_not_answer_condemns_nobody_in_bounded_time(scheme: str, mute_port: int) -> None:
    app = Celery("pinging", broker=f"{scheme}://127.0.0.1:{mute_port}/", set_as_current=False)
    began_s = time.monotonic()

    assert Ping(app, OWN.address).healthy([OWN, OTHER]) == BOTH

    assert time.monotonic() - began_s < LONGEST_S


def test_answers_that_come_late_condemn_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("pinging", broker="memory://", set_as_current=False)
    slow = Ping(app, OWN.address, answer_within_s=0.0)

    def call(_mailbox: object, _to: object, _what: str, *, timeout: float, callback: Any) -> None:
        callback({OWN.address: {"ok": "pong"}})

    monkeypatch.setattr("kombu.pidbox.Mailbox.call", call)
    monkeypatch.setattr("kombu.pidbox.Mailbox.__call__", lambda mailbox, _connection: mailbox)

    assert slow.healthy([OWN, OTHER]) == BOTH
