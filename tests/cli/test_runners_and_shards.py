"""runners, shards and shards reshard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.placement import NewRunner
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from tests.cli.support import Project
from tests.cli.terminal import on_terminal
from tests.storage.support import change

ACCOUNTS = [f"Account/{n}" for n in range(12)]


@pytest.fixture
def project(fresh: Project) -> Project:
    """A project of 4 shards whose schema is there."""
    edit(fresh, "entity_shards_per_group=4")
    assert fresh("db", "upgrade").code == 0
    return fresh


def edit(project: Project, setting: str) -> None:
    with (project.folder / f"{project.name}.py").open("a") as file:
        file.write(f"\napp.conf.update({setting})\n")


def configured(project: Project, shards: int) -> None:
    edit(project, f"entity_shards_per_group={shards}")


@contextmanager
def store_of(project: Project) -> Iterator[SqlStore]:
    text = (project.folder / f"{project.name}.py").read_text()
    cluster = re.findall(r'entity_cluster="(\w+)"', text)[0]
    url = driver_url(project.database_url)
    with closing(SqlStore(url, cluster=cluster, shards_per_group=4, connections=4, timeout_s=5.0)) as store:
        yield store


@contextmanager
def runners(project: Project, *names: str) -> Iterator[dict[str, Any]]:
    """Runners as workers register them, of which nobody else is told; their sessions by name."""
    with ExitStack() as stack:
        store = stack.enter_context(store_of(project))
        sessions = {}
        for number, name in enumerate(names):
            session = stack.enter_context(store.lease_session(f"token-{name}", deadline_s=5.0, lease_s=10.0))
            new = NewRunner(
                worker=f"token-{name}",
                address=f"{name}@host",
                host="host",
                pid=100 + number,
                groups=("default", "gpu"),
                weight=1.5,
                pool="threads",
                library_version="0.1.0",
                app_version="v7",
            )
            session.register(new)
            sessions[name] = session
        yield sessions


def send_to_all(project: Project) -> None:
    for account in ACCOUNTS:
        assert project("send", account, "deposit", "1").code == 0


def test_runners_are_listed_with_their_leases_and_their_state(project: Project) -> None:
    with runners(project, "one", "two") as sessions:
        sessions["one"].take([ShardId("default", 0), ShardId("gpu", 3)])
        sessions["two"].confirm(starved=True, leaving=False)
        text = project("runners")
        found = project("runners", "--output", "json").json
        for session in sessions.values():
            session.leave()

    assert text.out.splitlines()[0].split()[:4] == ["ADDRESS", "STATE", "LEASES", "SEEN"]
    assert [line.split()[:3] for line in text.out.splitlines()[1:]] == [
        ["one@host", "serving", "2"],
        ["two@host", "starved", "0"],
    ]
    fields = ("address", "groups", "weight", "pool", "host", "pid", "machine_id", "library", "app")
    assert [found[0][name] for name in fields] == [
        *("one@host", ["default", "gpu"], 1.5, "threads", "host", 100, 0, "0.1.0", "v7"),
    ]
    assert found[0]["seen_s"] < 5
    assert project("runners", "--output", "json").json == []


def test_a_runner_that_leaves_or_is_silent_says_so(project: Project) -> None:
    with runners(project, "one", "two") as sessions, store_of(project) as store:
        sessions["one"].confirm(starved=False, leaving=True)
        past = "seen_at - 60" if store.dialect.name == "sqlite" else "seen_at - interval '60 seconds'"
        change(store, f"UPDATE {{runner}} SET seen_at = {past} WHERE address = 'two@host'")  # noqa: S608 - constants

        states = {one["address"]: one["state"] for one in project("runners", "--output", "jsonl").jsonl}

    assert states == {"one@host": "leaving", "two@host": "unseen"}


def test_shards_are_listed_with_holder_and_load(project: Project) -> None:
    send_to_all(project)
    with runners(project, "one") as sessions:
        sessions["one"].take([ShardId("default", 0), ShardId("gpu", 1)])
        text = project("shards")
        found = project("shards", "list", "--output", "json").json
        held = project("shards", "--holder", "one@host", "--output", "json").json
        free = project("shards", "list", "--holder", "-", "--group", "default", "--output", "json").json

    assert text.out.splitlines()[0].split() == ["GROUP", "NUMBER", "HOLDER", "SINCE", "EPOCH", "PENDING", "OLDEST", "S"]
    every = [(one["group"], one["number"]) for one in found]
    assert every == [(group, number) for group in ("default", "gpu") for number in range(4)]
    assert sum(one["pending"] for one in found) == len(ACCOUNTS)
    assert (found[0]["holder"], found[0]["epoch"], found[0]["oldest_s"] >= 0) == ("one@host", 1, True)
    assert [(one["group"], one["number"]) for one in held] == [("default", 0), ("gpu", 1)]
    assert [(one["group"], one["number"], one["since"]) for one in free] == [("default", n, None) for n in (1, 2, 3)]


def test_a_holder_that_is_not_registered_any_more_is_nobody(project: Project) -> None:
    with runners(project, "one") as sessions, store_of(project) as store:
        sessions["one"].take([ShardId("default", 0)])
        change(store, "DELETE FROM {runner}")

        first = project("shards", "--output", "json").json[0]

    assert (first["holder"], first["instance"], first["since"], first["epoch"]) == (None, None, None, 1)


@pytest.mark.parametrize("words", [["runners"], ["shards"], ["shards", "list"]])
def test_a_store_without_anything_lists_nothing_amiss(project: Project, words: list[str]) -> None:
    ran = project(*words, "--output", "jsonl")

    assert ran.code == 0
    assert all(one.get("holder") is None for one in ran.jsonl)


# Reshard


def test_a_dry_run_shows_the_plan_and_changes_nothing(project: Project) -> None:
    send_to_all(project)

    dry = project("shards", "reshard", "2", "--dry-run")
    plan = project("shards", "reshard", "2", "--dry-run", "--output", "json").json

    assert (dry.code, dry.out.splitlines()[:3]) == (
        0,
        ["before            4", "after             2", "queues to remove  2"],
    )
    assert [line for line in dry.out.splitlines() if line.startswith("queue ")] == [
        f"queue {name} goes" for name in plan["queues"]
    ]
    assert (plan["before"], plan["after"], len(plan["queues"]), plan["runners"]) == (4, 2, 2, [])
    [group] = plan["groups"]
    assert (group["group"], group["messages"], group["dead_letters"]) == ("default", 12, 0)
    assert 0 < group["moving"] < 12
    assert len(project("shards", "--output", "json").json) == 4


def test_a_reshard_moves_what_waits_and_tells_those_that_begin(project: Project) -> None:
    send_to_all(project)

    done = project("shards", "reshard", "2")
    told = project("send", "Account/1", "deposit", "1")
    configured(project, 2)
    shards = project("shards", "--output", "json").json

    assert done.code == 0
    assert "set entity_shards_per_group = 2 wherever it is set, then start the workers" in done.out
    assert told.code == 2
    assert told.complaint == "the store has 2 shards per group, entity_shards_per_group says 4"
    assert [(one["number"], one["pending"] > 0) for one in shards] == [(0, True), (1, True)]
    assert sum(one["pending"] for one in shards) == len(ACCOUNTS)
    with project.worker():
        assert project("ask", "Account/1", "deposit", "1").out == "2\n"


def test_the_same_command_again_is_harmless(project: Project) -> None:
    assert project("shards", "reshard", "2", "--output", "json").json["before"] == 4

    again = project("shards", "reshard", "2", "--output", "json")

    assert (again.code, again.json["before"], again.json["queues"]) == (0, 2, [])


def test_while_a_worker_hosts_entities_it_is_refused_and_named(project: Project) -> None:
    with runners(project, "one"):
        refused = project("shards", "reshard", "2")
        dry = project("shards", "reshard", "2", "--dry-run", "--output", "json").json

    assert (refused.code, refused.out) == (1, "")
    assert refused.complaint == (
        "the number of shards is changed while no worker hosts entities: stop one@host (pid 100 on host) first"
    )
    assert dry["runners"] == ["one@host"]
    assert len(project("shards", "--output", "json").json) == 4


def test_on_a_terminal_it_asks_first(project: Project) -> None:
    refused = on_terminal(project, "shards", "reshard", "2", answer="n")
    assert refused.code == 1
    assert "Change 4 shards per group to 2, and move 0 pending messages? [y/N]" in refused.err
    assert project("shards", "reshard", "2", "--dry-run", "--output", "json").json["before"] == 4

    assert on_terminal(project, "shards", "reshard", "2", "--yes").code == 0
    assert project("shards", "reshard", "2", "--dry-run", "--output", "json").json["before"] == 2


def test_a_broker_that_is_away_is_exit_code_69_and_the_same_command_finishes_later(project: Project) -> None:
    module = project.folder / f"{project.name}.py"
    as_it_was = module.read_text()
    edit(project, 'broker_url="redis://127.0.0.1:1/0", broker_transport=None')

    away = project("shards", "reshard", "2")
    module.write_text(as_it_was)
    finished = project("shards", "reshard", "2", "--output", "json")
    again = project("shards", "reshard", "2", "--output", "json")

    assert away.code == 69
    assert away.complaint.startswith("the store has 2 shards per group now, but 2 queue(s) may be left on the broker;")
    assert "run again: entitycelery shards reshard 2" in away.complaint
    assert (finished.code, finished.json["before"], len(finished.json["queues"])) == (0, 2, 2)
    assert again.json["queues"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reshard", "0"], "0 is not in the range x>=1"),
        (["reshard", "many"], "'many' is not a valid integer"),
        (["reshard"], "Missing argument 'N'"),
        (["frob"], "No such command 'frob'"),
    ],
)
def test_what_is_wrong_is_said(idle: Project, words: list[str], sentence: str) -> None:
    refused = idle("shards", *words)

    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.err


def test_help_of_the_group_is_its_own(idle: Project) -> None:
    assert "reshard" in idle("shards", "--help").out
    assert "--holder" in idle("shards", "list", "--help").out
