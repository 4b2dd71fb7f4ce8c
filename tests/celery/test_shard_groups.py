"""Two workers of one app, each with a shard group of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import ROOT, Worker
from tests.waiting import eventually

STUDIO = "tests.celery.apps.studio"
SHARDS = 4


class Studio:
    """apps/studio.py on the store and the broker of a bank; other names are those of its module."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        name = f"studio_{id(self)}"
        spec = importlib.util.spec_from_file_location(name, ROOT / "tests/celery/apps/studio.py")
        assert spec is not None
        assert spec.loader is not None
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[name] = self.module
        with mock.patch.dict(os.environ, bank.environment()):
            spec.loader.exec_module(self.module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def worker(self, name: str, *options: str, **conf: Any) -> Worker:
        environment = {**self.bank.environment(**conf), "C_FORCE_ROOT": "1"}
        every = ["-P", "threads", "-c", "2", "-l", "INFO", *options]
        worker = Worker(name, self.bank.folder, *every, module=STUDIO, environment=environment)
        self.bank.workers.append(worker)
        return worker.await_ready()


@pytest.fixture(params=["redis", "folder"])
def studio(request: pytest.FixtureRequest, new_bank: OpenBank) -> Iterator[Studio]:
    made = Studio(new_bank(request.param, entity_shards_per_group=SHARDS))
    with closing(made.entities):
        made.entities.migrate_if_allowed()
        yield made


def test_each_worker_handles_only_what_belongs_to_its_groups(studio: Studio) -> None:
    gpu = studio.worker("gpu", "--shard-groups", "gpu")
    office = studio.worker("office", entity_shard_groups=["office"])

    ids = [f"{size}-{n}" for size in ("big", "small") for n in range(8)]
    by = {entity_id: studio.Order.ref(entity_id).place.ask() for entity_id in ids}
    rendered = {studio.Rendering.ref(f"clip-{n}").render.ask() for n in range(8)}

    assert {by[entity_id] for entity_id in ids if entity_id.startswith("big")} == {gpu.pid}
    assert {by[entity_id] for entity_id in ids if entity_id.startswith("small")} == {office.pid}
    assert rendered == {gpu.pid}
    # Mail from turns of one group to entities of the other, there and back.
    finished = eventually(lambda: all(studio.entities.state(studio.Order.ref(i)).finished_by for i in ids))
    assert finished
    assert {studio.entities.state(studio.Order.ref(i)).finished_by for i in ids} == {gpu.pid, office.pid}
    assert sorted(studio.entities.state(studio.Rendering.ref("movie")).orders) == sorted(ids)


def test_who_hosts_what_is_told(studio: Studio) -> None:
    gpu = studio.worker("gpu", "--shard-groups", "gpu")
    office = studio.worker("office", "--shard-groups", "office")
    entities, movie = studio.entities, studio.Rendering.ref("movie")

    def settled() -> bool:
        found = entities.shards()
        return len(found) == 2 * SHARDS and all(one.holder is not None for one in found)

    assert eventually(settled)
    assert {runner.pid: runner.groups for runner in entities.runners()} == {
        gpu.pid: ("gpu",),
        office.pid: ("office",),
    }
    held = {(one.shard.group, one.holder.pid) for one in entities.shards() if one.holder}
    assert held == {("gpu", gpu.pid), ("office", office.pid)}
    assert entities.shard_of(movie).group == "gpu"
    assert entities.owner_of(movie).pid == gpu.pid
    assert entities.owner_of(studio.Order.ref("big-1")).pid == gpu.pid
    assert entities.owner_of(studio.Order.ref("small-1")).pid == office.pid
    assert entities.is_local(movie) is False
    assert movie.is_at_home.ask() is True
    assert studio.Order.ref("small-1").is_movie_here.ask() is False


def test_a_group_that_nobody_serves_waits_and_holds_nobody_else_up(studio: Studio) -> None:
    studio.worker("office", "--shard-groups", "office")
    waiting = studio.Rendering.ref("movie").render.send()

    assert studio.Order.ref("small-1").finish.ask() > 0
    assert studio.entities.status(studio.Rendering.ref("movie")).pending == 1
    assert studio.entities.owner_of(studio.Rendering.ref("movie")) is None
    gpu = studio.worker("gpu", "--shard-groups", "gpu")

    assert waiting.result(timeout_s=10) == gpu.pid
