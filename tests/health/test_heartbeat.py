"""The heartbeat file: whole beats, fresh while the loop goes round."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entitycelery.exceptions import ConfigurationError
from entitycelery.health.heartbeat import Heartbeat, HeartbeatFile, fresh_for_s, heartbeat_file, read_heartbeat
from entitycelery.settings import Settings

BEAT = Heartbeat(worker="w1", pid=7, at="2030-01-01T12:00:00.000+00:00", at_epoch_s=1_000.0, fresh_s=5.0)


def file_in(folder: Path, **other: Any) -> HeartbeatFile:
    return HeartbeatFile(folder / "beat.json", **{"worker": "w1", "pid": 7, "every_s": 0.0, "fresh_s": 5.0, **other})


def test_a_beat_says_who_and_when(tmp_path: Path) -> None:
    before_s = time.time()
    file_in(tmp_path).beat()

    beat = read_heartbeat(tmp_path / "beat.json")

    assert beat is not None
    assert (beat.worker, beat.pid, beat.fresh_s) == ("w1", 7, 5.0)
    assert before_s <= beat.at_epoch_s <= time.time()
    assert abs(datetime.fromisoformat(beat.at).timestamp() - beat.at_epoch_s) < 0.01


@pytest.mark.parametrize(
    ("age_s", "max_age_s", "is_fresh"),
    [(0, None, True), (5, None, True), (5.1, None, False), (5.1, 6, True), (2, 1, False), (-4, None, True)]
    # The clock was set back: such a beat would be fresh for an hour.
    + [(-3_600, None, False)],
)
def test_a_beat_is_fresh_for_as_long_as_it_says_or_as_is_asked_for(
    age_s: float, max_age_s: float | None, is_fresh: bool
) -> None:
    assert BEAT.is_fresh(BEAT.at_epoch_s + age_s, max_age_s) is is_fresh


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"worker": 5}', "\x00\xff"])
def test_a_file_that_holds_something_else_holds_no_beat(tmp_path: Path, text: str) -> None:
    (tmp_path / "beat.json").write_text(text)

    assert read_heartbeat(tmp_path / "beat.json") is None
    assert read_heartbeat(tmp_path / "none.json") is None


def test_a_file_of_a_later_release_can_be_read(tmp_path: Path) -> None:
    fields = {**msgspec.to_builtins(BEAT), "invented_later": [1, 2]}
    (tmp_path / "beat.json").write_text(json.dumps(fields))

    assert read_heartbeat(tmp_path / "beat.json") == BEAT


def test_a_reader_never_finds_half_a_beat(tmp_path: Path) -> None:
    file = file_in(tmp_path, worker="w" * 10_000)
    file.beat()
    done = threading.Event()

    def write() -> None:
        for _ in range(300):
            file.beat()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    found = []
    while not done.is_set():
        found.append(read_heartbeat(tmp_path / "beat.json"))
    thread.join()

    assert found
    assert None not in found
    assert os.listdir(tmp_path) == ["beat.json"]


def test_the_loop_writes_no_more_often_than_it_is_due(tmp_path: Path) -> None:
    file = file_in(tmp_path, every_s=3_600.0)
    file.beat_when_due()
    (tmp_path / "beat.json").unlink()

    file.beat_when_due()

    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_is_named_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = file_in(tmp_path / "nowhere")

    with pytest.raises(ConfigurationError, match=r"entity_health_file cannot be written: .*nowhere"):
        file.beat()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.beat_when_due()

    assert len(caplog.records) == 1


def test_the_settings_name_the_file_and_a_slow_database_is_no_reason_to_end_a_worker(tmp_path: Path) -> None:
    settings = Settings(health_file=str(tmp_path / "beat.json"), refresh_interval_s=2.0, send_timeout_s=4.0)

    file = heartbeat_file(settings, worker="w1", pid=7)
    assert file is not None
    file.beat()

    beat = read_heartbeat(tmp_path / "beat.json")
    assert beat is not None
    assert beat.fresh_s == fresh_for_s(settings) > 3 * 2.0 + 2 * 4.0
    assert heartbeat_file(Settings(), worker="w1", pid=7) is None
