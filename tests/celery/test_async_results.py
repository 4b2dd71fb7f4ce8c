"""`.delay()` and `apply_async()` of a handler give Celery's AsyncResult, whatever result backend the app has."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult

from entitycelery.exceptions import ConfigurationError, KeyConflict, MessageExpired, UnknownMessage
from tests.celery.apps.errors import InsufficientFunds
from tests.celery.banks import Bank, open_bank
from tests.celery.workers import ROOT
from tests.conftest import url_or_skip
from tests.services import Services
from tests.waiting import eventually


@pytest.fixture(scope="module", params=["redis", "folder"])
def bank(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    folder = tmp_path_factory.mktemp("bank")
    with open_bank(services, folder, request.param, entity_shards_per_group=4) as opened:
        opened.worker()
        yield opened


@pytest.fixture(scope="module", params=["none", "redis", "entity", "entity://", "disabled"])
def client(request: pytest.FixtureRequest, bank: Bank, services: Services) -> Iterator[ModuleType]:
    """The same app with every kind of result backend."""
    url = {"none": None, "redis": url_or_skip(services.redis()), "disabled": "disabled://"}
    module = bank.client(result_backend=url.get(request.param, request.param))
    yield module
    module.entities.close()


def test_result_of_a_handler_is_there_in_full(client: ModuleType) -> None:
    result = client.Account.ref("rich").deposit.delay(5)

    assert isinstance(result, AsyncResult)
    assert result.get(timeout=30) >= 5
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    assert (result.state, result.traceback) == ("SUCCESS", None)
    assert result.date_done is not None


def test_failure_is_raised_as_its_own_class_with_its_traceback(client: ModuleType) -> None:
    result = client.Account.ref("poor").transfer.delay(5, to="rich")

    with pytest.raises(InsufficientFunds) as raised:
        result.get(timeout=30)

    assert raised.value.amount == 5
    assert (result.ready(), result.successful(), result.failed()) == (True, False, True)
    assert result.state == "FAILURE"
    assert isinstance(result.result, InsufficientFunds)
    assert "in transfer" in result.traceback


def test_get_without_propagation_returns_the_exception(client: ModuleType) -> None:
    result = client.Account.ref("poor").transfer.delay(5, to="rich")

    assert isinstance(result.get(timeout=30, propagate=False), InsufficientFunds)


def test_get_that_takes_too_long_raises_celerys_time_out(client: ModuleType) -> None:
    result = client.Account.ref("later").deposit.apply_async((1,), countdown=3600)

    with pytest.raises(CeleryTimeout):
        result.get(timeout=0.2)

    assert (result.state, result.ready(), result.result) == ("PENDING", False, None)


def test_result_of_a_message_that_runs_is_pending_until_it_is_done(bank: Bank, client: ModuleType) -> None:
    name = client.__name__
    result = client.Journal.ref(name).hold.delay("me", 0, name)
    eventually(lambda: bank.mark(f"{name}.started"))

    assert (result.state, result.ready()) == ("PENDING", False)
    bank.allow(name)
    assert result.get(timeout=30)


def test_forgetting_a_result_keeps_the_key(client: ModuleType) -> None:
    task_id = f"forgotten-{client.__name__}"
    first = client.Account.ref("forgetful").deposit.apply_async((5,), task_id=task_id)
    answer = first.get(timeout=30)

    first.forget()

    again = client.Account.ref("forgetful").deposit.apply_async((5,), task_id=task_id)
    assert again.get(timeout=30) == answer


def test_unknown_id_is_pending_as_everywhere_in_celery_and_nobody_waits_for_it(bank: Bank) -> None:
    client = bank.client(result_backend="entity")

    result = client.app.AsyncResult("no-such-message")

    assert (result.state, result.ready()) == ("PENDING", False)
    with pytest.raises(UnknownMessage):
        result.get(timeout=30)


def test_entity_backend_finds_a_result_by_its_id(bank: Bank) -> None:
    client = bank.client(result_backend="entity")
    sent = bank.Account.ref("found").deposit.send(5)

    assert client.app.AsyncResult(sent.id).get(timeout=30) == 5


def test_another_process_gets_the_result_by_its_id(bank: Bank) -> None:
    sent = bank.Account.ref("abroad").deposit.send(5)
    program = (
        "import sys; from tests.celery.apps.bank import app;"
        "print(app.AsyncResult(sys.argv[1]).get(timeout=30), app.AsyncResult(sys.argv[1]).state)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, sent.id],
        cwd=ROOT,
        env={**bank.environment(result_backend="entity"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.split() == ["5", "SUCCESS"], done.stderr


def test_countdown_and_eta_are_not_early(bank: Bank) -> None:
    before_s = time.time()
    eta = datetime.now(UTC) + timedelta(seconds=0.5)

    counted = bank.Journal.ref("counted").stamp.apply_async((1,), countdown=0.4)
    dated = bank.Journal.ref("dated").stamp.apply_async((1,), eta=eta)

    assert counted.get(timeout=30) >= before_s + 0.4
    assert dated.get(timeout=30) >= eta.timestamp()


@pytest.mark.parametrize("as_instant", [False, True], ids=["seconds", "instant"])
def test_expired_message_has_a_failed_result(bank: Bank, as_instant: bool) -> None:
    expires = datetime.now(UTC) + timedelta(seconds=0.2) if as_instant else 0.2

    result = bank.Account.ref("expiring").deposit.apply_async((5,), countdown=0.6, expires=expires)

    with pytest.raises(MessageExpired):
        result.get(timeout=30)
    assert result.state in ("FAILURE", "REVOKED")
    assert not bank.entities.exists(bank.Account.ref("expiring"))


def test_same_task_id_is_the_same_message(bank: Bank) -> None:
    call = bank.Account.ref("twice").deposit

    first = call.apply_async((5,), task_id="order-17")
    second = call.apply_async((5,), task_id="order-17")

    assert first.id == second.id
    assert [first.get(timeout=30), second.get(timeout=30)] == [5, 5]
    with pytest.raises(KeyConflict):
        call.apply_async((6,), task_id="order-17")


def test_option_without_a_meaning_is_refused_by_name(bank: Bank) -> None:
    with pytest.raises(ConfigurationError, match="queue, serializer has no meaning"):
        bank.Account.ref("alice").deposit.apply_async((5,), queue="fast", serializer="pickle")


@pytest.mark.parametrize("allowed", [False, True])
def test_ask_inside_a_task_follows_celerys_rule_for_get(bank: Bank, allowed: bool) -> None:
    name = f"asked-{allowed}"

    bank.ask_in_task.delay(name, allowed=allowed)

    [note] = eventually(lambda: bank.entities.state(bank.Account.ref(f"{name}-notes")).notes)
    if allowed:
        assert note == "got 5"
    else:
        assert note.startswith("refused: Never call result.get() within a task!")
        # Refused before anything was stored.
        assert not bank.entities.exists(bank.Account.ref(name))
