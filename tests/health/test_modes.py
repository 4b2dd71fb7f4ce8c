"""Which check a setting means, and what `noop` and `auto` do."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from entitycelery.health import auto as auto_module
from entitycelery.health.aside import Aside
from entitycelery.health.k8s import K8s, in_kubernetes
from entitycelery.health.modes import MODES, health_of
from entitycelery.health.noop import Noop
from entitycelery.health.ping import Ping
from entitycelery.health.verdict import Place, everybody
from entitycelery.settings import HEALTH_MODES, Settings
from tests.health.records import runner


def place(mode: str) -> Place:
    app = Celery("place", broker="memory://", set_as_current=False)
    return Place(Settings(health=mode), app, "a@host-a")


def kind_of(mode: str) -> type:
    health = health_of(place(mode))
    return type(health.health if isinstance(health, Aside) else health)


def test_every_mode_that_the_setting_allows_is_there() -> None:
    assert set(MODES) == set(HEALTH_MODES)


@pytest.mark.parametrize(("mode", "kind"), [("noop", Noop), ("ping", Ping), ("k8s", K8s)])
def test_the_setting_names_the_check(mode: str, kind: type) -> None:
    assert kind_of(mode) is kind


@pytest.mark.parametrize(("inside", "kind"), [(True, K8s), (False, Ping)])
def test_auto_is_the_pods_inside_kubernetes_else_pings(
    inside: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_module, "in_kubernetes", lambda: inside)

    assert kind_of("auto") is kind


def test_inside_kubernetes_is_where_there_are_an_api_server_and_a_token(tmp_path: Path) -> None:
    variables = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert not in_kubernetes(variables, tmp_path)
    (tmp_path / "token").write_text("secret")

    assert in_kubernetes(variables, tmp_path)
    assert not in_kubernetes({}, tmp_path)


def test_noop_condemns_nobody() -> None:
    runners = [runner("a"), runner("b", locked=False)]

    assert Noop().healthy(runners) == everybody(runners)
