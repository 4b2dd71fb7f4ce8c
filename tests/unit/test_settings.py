"""Settings: command line > environment > conf > default, and a bad value says which it is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from entitycelery.exceptions import ConfigurationError
from entitycelery.settings import SETTING_NAMES, Settings, read_settings
from entitycelery.storage.sql.url import driver_url

DURATIONS = [field.name for field in dataclasses.fields(Settings) if field.name.endswith("_s")]
NUMBERS = [field.name for field in dataclasses.fields(Settings) if str(field.type).startswith(("int", "float"))]
BAD: dict[str, list[Any]] = {
    **{name: ["", "soon", [1], {"a": 1}, True] for name in NUMBERS},
    **{name: ["", "soon", [1], True, 0, -1, math.nan, math.inf, "nan", "inf"] for name in DURATIONS},
    # 0 turns it off.
    "deploy_window_s": ["", "soon", [1], True, -1, math.nan, math.inf, "nan", "inf"],
    "log_format": ["", "xml", 5],
    "lock_mode": ["", "row", 5],
    "health": ["", "pong", 5],
    "health_k8s_namespace": ["", "My Space", "x" * 64, "-a"],
    "health_k8s_selector": ["", " "],
    "health_file": ["", " "],
    "shards_per_group": ["x", 0, -1, 1.5, "1.5", True, math.nan],
    "mailbox_capacity": ["x", 0, -1, 1.5],
    "batch_size": [0, -1, 1.5, "1.5"],
    "workflow_max_steps": [0, -1, 1.5, "1.5"],
    "send_retries": [-1, 0.5, "x"],
    "max_crashes": [0, "x"],
    "connections": [0, -5],
    "max_payload_bytes": [0, -1, 1.5, 64 * 1024 * 1024 + 1],
    "max_state_bytes": [0, 64 * 1024 * 1024 + 1],
    "max_id_bytes": [0, 2_401],
    "max_nesting": [0, 501],
    "async_concurrency": [0, "many"],
    "cluster": ["", "My Cluster", 5, "x" * 33],
    "shard_groups": ["", "a,,b", "a b", 5, [], ()],
    "auto_migrate": ["maybe", ""],
    "preemptive_shutdown": ["maybe", ""],
    "runner_weight": ["heavy", 0, -1, math.nan, math.inf],
    "app_version": ["", " "],
}


def test_defaults_hold_where_nothing_is_said() -> None:
    assert read_settings({}, {}) == Settings()


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Settings)])
def test_the_command_line_wins_over_the_environment_over_conf_over_the_default(field: str) -> None:
    values: dict[str, Any] = {
        "database_url": ["sqlite:///a", "sqlite:///b", "sqlite:///c"],
        "cluster": ["one", "two", "three"],
        "shard_groups": [("one",), ("two",), ("three",)],
        "auto_migrate": [True, False, True],
        "preemptive_shutdown": [False, True, False],
        "app_version": ["1", "2", "3"],
        # A lease lives for longer than three of them.
        "refresh_interval_s": [1.5, 2, 3],
        "log_format": ["json", "celery", "json"],
        "lock_mode": ["rows", "advisory", "rows"],
        "health": ["ping", "noop", "k8s"],
        "health_k8s_namespace": ["one", "two", "three"],
        "health_k8s_selector": ["app=one", "app=two", "app in (three, four)"],
        "health_file": ["/run/one", "/run/two", "/run/three"],
    }
    line, env, conf = values.get(field, [7, 8, 9])
    environment = {f"ENTITY_{field.upper()}": ",".join(env) if isinstance(env, tuple) else str(env)}
    settings = {f"entity_{field}": conf}

    def read(*sources: Any) -> object:
        return getattr(read_settings(*sources), field)

    assert read(settings, environment, {field: line}) == line
    assert read(settings, environment, {field: None}) == env
    assert read(settings, environment) == env
    assert read(settings, {}) == conf
    assert read({f"entity_{field}": None}, {}) == getattr(Settings(), field)


@pytest.mark.parametrize(("field", "bad"), [(field, bad) for field, values in BAD.items() for bad in values], ids=repr)
def test_a_bad_value_names_itself(field: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"\bentity_{field}\b"):
        read_settings({f"entity_{field}": bad}, {})


def test_every_setting_has_a_bad_value_here() -> None:
    assert {*BAD, "database_url"} == {name.removeprefix("entity_") for name in SETTING_NAMES}


@pytest.mark.parametrize("bad", ["nonsense", "mysql://localhost/x", "postgresql+asyncpg://localhost/x", ""])
def test_a_bad_database_url_names_its_setting(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="entity_database_url"):
        driver_url(bad)


def test_a_bad_value_says_where_it_came_from() -> None:
    with pytest.raises(ConfigurationError, match="from the environment variable ENTITY_BATCH_SIZE"):
        read_settings({"entity_batch_size": 5}, {"ENTITY_BATCH_SIZE": "many"})
    with pytest.raises(ConfigurationError, match="from the setting entity_batch_size"):
        read_settings({"entity_batch_size": "many"}, {})
    with pytest.raises(ConfigurationError, match="from the command line"):
        read_settings({}, {}, {"batch_size": "many"})


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("ask_timeout_s", "2.5", 2.5),
        ("batch_size", "50", 50),
        ("batch_size", 50.0, 50),
        ("shard_groups", "blue, green", ("blue", "green")),
        ("shard_groups", ["blue", "green"], ("blue", "green")),
        ("auto_migrate", "YES", True),
        ("auto_migrate", "off", False),
        ("auto_migrate", False, False),
        ("mailbox_capacity", "10", 10),
    ],
)
def test_values_are_read_from_text_and_from_python(field: str, text: Any, value: Any) -> None:
    assert getattr(read_settings({f"entity_{field}": text}, {}), field) == value


def test_a_turn_must_not_be_shorter_than_the_wait_for_its_commit() -> None:
    with pytest.raises(ConfigurationError, match=r"entity_batch_budget_s .* entity_turn_timeout_s"):
        read_settings({"entity_batch_budget_s": 2, "entity_turn_timeout_s": 1}, {})


def test_every_duration_says_its_unit() -> None:
    floats = {field.name for field in dataclasses.fields(Settings) if str(field.type) == "float"}

    # A weight is relative to others.
    assert floats - {"runner_weight"} == set(DURATIONS)
