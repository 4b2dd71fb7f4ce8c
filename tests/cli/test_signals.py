"""signal, signals."""

from __future__ import annotations

import re

from tests.cli.support import Project
from tests.waiting import eventually


def test_a_signal_is_listed_and_completed_by_its_token(waiting: Project, wish: str) -> None:
    token = waiting("ask", wish, "await_gift", "3600").out.strip()
    [listed] = waiting("signals", wish, "--tokens", "--output", "json").json
    assert (listed["address"], listed["name"], listed["then"]) == (wish, "gift", "receive")
    assert listed["token"] == token
    assert listed["expires"] > listed["since"]
    assert token not in waiting("signals", wish).out
    eventually(lambda: waiting("state", wish, "--output", "json").json["status"] == "suspended")

    done = waiting("signal", token, "7")

    assert (done.code, done.out) == (0, "completed\n")
    eventually(lambda: waiting("state", wish, "--output", "json").json["state"]["balance"] == 7)
    assert waiting("signals", wish).out == ""
    again = waiting("signal", token, "8")
    assert (again.code, again.complaint) == (1, f"the signal 'gift' of {wish} is over")


def test_a_signal_is_completed_by_address_and_name_before_it_is_expected(waiting: Project, wish: str) -> None:
    early = waiting("signal", wish, "gift", "7", "--output", "json")

    assert early.json == {"address": wish, "name": "gift", "outcome": "early"}

    waiting("ask", wish, "await_gift")
    eventually(lambda: waiting("state", wish, "--output", "json").json["state"]["balance"] == 7)


def test_a_signal_is_failed_or_cancelled(waiting: Project, wish: str) -> None:
    for option in (("--fail", "sold out"), ("--cancel",)):
        token = waiting("ask", wish, "await_gift").out.strip()
        assert waiting("signal", token, *option).out == "completed\n"

    letters = eventually(lambda: _two(waiting("dead", "list", "--address", wish, "--output", "jsonl").jsonl))
    assert [letter["reason"] for letter in letters] == ["SignalFailed", "SignalCancelled"]


def _two(letters: list[dict[str, str]]) -> list[dict[str, str]] | None:
    return letters if len(letters) == 2 else None


def test_a_value_that_does_not_fit_is_refused(waiting: Project, wish: str) -> None:
    token = waiting("ask", wish, "await_gift").out.strip()

    refused = waiting("signal", token, "seven")

    assert refused.code == 2
    assert re.search(r"argument 'amount' of Wish\.receive: Expected `int`, got `str`", refused.complaint)
    assert len(waiting("signals", wish, "--output", "json").json) == 1


def test_what_cannot_be_meant_is_a_usage_error_or_not_found(waiting: Project, wish: str) -> None:
    assert waiting("signal", "nonsense", "1").code == 3
    assert waiting("signal", wish).code == 2
    assert waiting("signal", wish, "gift", "1", "2").code == 2
    assert waiting("signal", wish, "gift", "1", "--cancel").code == 2
    assert waiting("signal", wish, "gift", "--fail", "x", "--cancel").code == 2
    assert waiting("signal", "Nobody/1", "gift").code == 2
    assert waiting("signals", "Nobody/1").code == 2
