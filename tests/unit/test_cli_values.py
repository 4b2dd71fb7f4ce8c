"""Words on the command line: durations, instants and arguments."""

from __future__ import annotations

import io
from pathlib import Path
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


def test_a_word_that_begins_with_an_at_sign_is_what_a_file_holds(tmp_path: Path) -> None:
    order, note, empty = (tmp_path / name for name in ("order.json", "note.txt", "empty"))
    order.write_bytes(b'\xef\xbb\xbf{"pieces": [1, 2]}\n')
    note.write_text("Grüße\n")
    empty.touch()

    assert value_of(f"@{order}") == {"pieces": [1, 2]}
    assert value_of(f"@{note}") == "Grüße\n"
    assert value_of(f"@{empty}") == ""
    assert arguments_of([f"order=@{order}", f"@{note}"], ["order"]) == (["Grüße\n"], {"order": {"pieces": [1, 2]}})


def test_two_at_signs_are_one_and_no_file() -> None:
    assert value_of("@@home") == "@home"
    assert value_of("@@") == "@"
    assert value_of('"@home"') == "@home"
    assert arguments_of(["to=@@home"], ["to"]) == ([], {"to": "@home"})


def test_what_a_file_holds_is_not_read_as_a_file_again(tmp_path: Path) -> None:
    (tmp_path / "tricky").write_text("@/etc/hostname")

    assert value_of(f"@{tmp_path / 'tricky'}") == "@/etc/hostname"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_told_with_the_way_out(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "bob"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(click.UsageError, match=rf"@{file}: .*A text that begins with @ is written @@{file}"):
        value_of(f"@{file}")


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.UsageError, match="can be read once"):
        arguments_of(["a=@-", "@-"], ["a"])

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[5]\n")))
    assert arguments_of(["a=@-"], ["a"]) == ([], {"a": [5]})


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "a\rb", "\x00"])
def test_nothing_printed_steers_a_terminal(text: str) -> None:
    assert cell(text).isprintable()
