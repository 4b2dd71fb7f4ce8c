"""The tree of errors: each says who, survives pickling, and stands in the drawing."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from entitycelery import exceptions
from entitycelery.exceptions import EntityError, HandlerFailed, MalformedMessage, NoResult, ReplyTimeout, UnknownMessage


def tree(cls: type[EntityError] = EntityError) -> list[type[EntityError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


OURS = [cls for cls in tree() if cls.__module__ == exceptions.__name__]


@pytest.mark.parametrize("cls", OURS)
def test_every_error_survives_pickling_and_copying(cls: type[EntityError]) -> None:
    error = cls("what happened", address="Account/alice", message_id="m1", shard="default.5")

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls
        assert str(again) == "what happened"
        assert (again.address, again.message_id, again.shard) == ("Account/alice", "m1", "default.5")


def test_what_an_error_carries_besides_survives_pickling_too() -> None:
    malformed = MalformedMessage("bad", argument="amount")
    failed = HandlerFailed("bad", exception_type="shop.Error", remote_traceback="Traceback")

    assert pickle.loads(pickle.dumps(malformed)).argument == "amount"
    again = pickle.loads(pickle.dumps(failed))
    assert (again.exception_type, again.remote_traceback) == ("shop.Error", "Traceback")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^ +[├└│─ ]*([A-Z]\w+)", exceptions.__doc__ or "", re.MULTILINE)

    assert sorted(drawn) == sorted(cls.__name__ for cls in OURS)


def test_what_the_drawing_calls_transient_is() -> None:
    drawn = set(re.findall(r"([A-Z]\w+) .*\(transient\)", exceptions.__doc__ or ""))

    assert drawn == {cls.__name__ for cls in OURS if cls.transient}


def test_reasons_are_distinct_so_that_a_stored_one_says_which() -> None:
    reasons = [cls.reason for cls in OURS]

    assert len(set(reasons)) == len(reasons)


def test_a_time_out_and_a_missing_message_are_also_what_python_calls_them() -> None:
    assert issubclass(ReplyTimeout, TimeoutError)
    assert issubclass(UnknownMessage, LookupError)
    assert issubclass(HandlerFailed, NoResult)
