"""A handler's exception on its way through the store: written down, and raised again where it is awaited."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from entitycelery.address import Address
from entitycelery.exceptions import HandlerFailed, KeyConflict, MessageCancelled, MessageExpired
from entitycelery.failures import RemoteTraceback, exception_from, failure_from, result_of
from entitycelery.message import Failure, Reply, Status
from tests.naming import shown


class InsufficientFundsError(Exception):
    """What a user would write."""


class Outer:
    class NestedError(Exception):
        pass


class WithKeywordError(Exception):
    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class BrokenInitError(Exception):
    def __init__(self, *args: Any) -> None:
        if not TEMPER:
            raise RuntimeError("not today")
        super().__init__(*args)


TEMPER = [1]


def stored(exc: BaseException) -> Failure:
    """The failure of a raised exception as a store gives it back."""
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001 - a test of what handlers may raise
        return msgspec.json.decode(msgspec.json.encode(failure_from(caught)), type=Failure)


def raised_again(exc: BaseException) -> BaseException:
    return exception_from(stored(exc), address="Account/alice", message_id="m1")


@pytest.mark.parametrize(
    "exc",
    [
        InsufficientFundsError(5, "EUR"),
        Outer.NestedError("deep"),
        ValueError("bad", [1, {"a": None}]),
        KeyError("name"),
        ZeroDivisionError(),
        OSError(2, "No such file"),
    ],
    ids=shown,
)
def test_an_importable_exception_is_raised_again_as_its_own_class_with_its_arguments(exc: Exception) -> None:
    again = raised_again(exc)

    assert type(again) is type(exc)
    assert again.args == exc.args


def test_our_own_errors_come_back_with_who_they_are_about() -> None:
    again = raised_again(KeyConflict("used before"))

    assert isinstance(again, KeyConflict)
    assert (again.address, again.message_id) == ("Account/alice", "m1")


def local_class() -> Exception:
    class HiddenError(Exception):
        pass

    return HiddenError("nobody can import me")


def foreign_class() -> Exception:
    cls = type("GoneError", (Exception,), {"__module__": "a_module.that_is_gone"})
    return cls("away")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("exc", "named"),
    [
        (local_class(), "HiddenError: nobody can import me"),
        (foreign_class(), "a_module.that_is_gone.GoneError: away"),
        (WithKeywordError("refused", code=5), "WithKeywordError: refused"),
        (ValueError(object()), "ValueError: <object object"),
        (ValueError((1, 2)), r"ValueError: \(1, 2\)"),
        (ValueError(math.nan), "ValueError: nan"),
        (ValueError("a\0b"), "ValueError: a\ufffdb"),
        (ValueError("\ud800"), r"ValueError: \?"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=shown,
)
def test_an_exception_that_cannot_be_rebuilt_is_handler_failed_with_its_name_and_text(
    exc: BaseException, named: str
) -> None:
    again = raised_again(exc)

    assert type(again) is HandlerFailed
    assert again.exception_type.endswith(type(exc).__qualname__)
    assert "Traceback (most recent call last)" in again.remote_traceback
    with pytest.raises(HandlerFailed, match=named):
        raise again


def test_a_class_that_refuses_to_be_rebuilt_is_handler_failed() -> None:
    failure = stored(BrokenInitError("once"))
    TEMPER.clear()

    again = exception_from(failure, address="Account/alice", message_id="m1")

    assert type(again) is HandlerFailed


def test_a_broken_text_is_survived() -> None:
    failure = stored(BrokenTextError("x"))

    assert failure.message == "<BrokenTextError whose text failed: ValueError>"
    assert type(exception_from(failure, address="a", message_id="m")) is BrokenTextError


def test_the_traceback_of_the_turn_is_the_cause_of_what_is_raised() -> None:
    again = raised_again(InsufficientFundsError(5))

    assert isinstance(again.__cause__, RemoteTraceback)
    assert "in stored" in str(again.__cause__)
    assert "InsufficientFundsError: 5" in str(again.__cause__)


def test_texts_are_cut_so_that_a_reply_stays_small() -> None:
    failure = stored(ValueError("x" * 1_000_000, b""))

    assert len(failure.message) <= 16_000
    assert len(failure.traceback) <= 16_000


def test_a_failure_keeps_the_stable_reason() -> None:
    assert stored(KeyConflict("x")).reason == "KeyConflict"
    assert stored(ValueError("x")).reason == "HandlerFailed"


@pytest.mark.parametrize("name", ["os:system", "os:environ", "builtins:int", "builtins:print", "x", ":", "no such:x"])
def test_a_stored_name_that_is_no_exception_is_never_called(name: str) -> None:
    failure = Failure(reason="HandlerFailed", type=name, message="m", args=["true"])

    assert type(exception_from(failure, address="a", message_id="m")) is HandlerFailed


def reply(status: Status, **fields: Any) -> Reply:
    return Reply("m1", Address("Account", "alice"), "deposit", status, fields.get("result"), fields.get("failure"), 0.0)


def test_each_way_to_end_is_another_answer() -> None:
    assert result_of(reply(Status.DONE, result="5")) == "5"
    with pytest.raises(MessageExpired):
        result_of(reply(Status.EXPIRED))
    with pytest.raises(MessageCancelled):
        result_of(reply(Status.CANCELLED))
    for status in (Status.FAILED, Status.DEAD):
        with pytest.raises(InsufficientFundsError):
            result_of(reply(status, failure=stored(InsufficientFundsError(5))))
    with pytest.raises(HandlerFailed, match="failed without a reason"):
        result_of(reply(Status.FAILED))
