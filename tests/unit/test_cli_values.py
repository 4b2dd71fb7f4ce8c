"""Words on the command line: durations, instants and arguments."""

from __future__ import annotations

from typing import Any

import click
import pytest

from entitycelery.cli.output import cell
from entitycelery.cli.values import arguments_of, duration, instant, value_of


@pytest.mark.parametrize(
    ("word", "seconds"), [("90", 90), ("0", 0), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("2h", 7_200), ("1d", 86_400)]
)
def test_a_duration_has_a_unit_or_is_in_seconds(word: str, seconds: float) -> None:
    assert duration(word) == seconds


@pytest.mark.parametrize("word", ["", "-1", "soon", "5 m", "5M", "1e3", "inf", "nan", "5ms", "5m\n"])
def test_what_is_no_duration_is_refused(word: str) -> None:
    with pytest.raises(click.BadParameter, match="is no duration"):
        duration(word)


def test_an_instant_needs_its_zone() -> None:
    assert instant("2030-01-31T09:00:00+01:00").isoformat() == "2030-01-31T09:00:00+01:00"
    assert instant("2030-01-31T09:00:00Z").utcoffset() is not None
    with pytest.raises(click.BadParameter, match="no time zone"):
        instant("2030-01-31T09:00:00")
    with pytest.raises(click.BadParameter, match="no instant"):
        instant("tomorrow")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ('"5"', "5"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("five", "five"),
        ("", ""),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_word_is_json_or_itself(word: str, value: Any) -> None:
    assert value_of(word) == value


def test_a_known_name_before_an_equals_sign_names_an_argument() -> None:
    assert arguments_of(["5", "to=bob", "note=a=b"], ["amount", "to"]) == ([5, "note=a=b"], {"to": "bob"})


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "a\rb", "\x00"])
def test_nothing_printed_steers_a_terminal(text: str) -> None:
    assert cell(text).isprintable()
