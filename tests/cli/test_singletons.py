"""singleton list, restart and move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from entitycelery.singleton import LoopSpec, Timing
from entitycelery.storage.sql.singleton_session import SqlSingletonSession
from tests.cli.support import Project
from tests.cli.test_runners_and_shards import runners, store_of

FEED = LoopSpec("feed", "default", "shop", "feed", 1.0, 60.0, 5.0)
NIGHTLY = LoopSpec("nightly", "other", "shop", "nightly", 1.0, 60.0, 5.0)
# No row runs out while a test looks at it.
TIMING = Timing(20.0)


@pytest.fixture
def project(fresh: Project) -> Project:
    """A project of 4 shards whose schema is there."""
    with (fresh.folder / f"{fresh.name}.py").open("a") as file:
        file.write("\napp.conf.update(entity_shards_per_group=4)\n")
    assert fresh("db", "upgrade").code == 0
    return fresh


@pytest.fixture
def held(project: Project) -> Iterator[SqlSingletonSession]:
    """Two runners, `one` of which runs the feed; nobody runs the other singleton."""
    with ExitStack() as stack:
        stack.enter_context(runners(project, "one", "two"))
        store = stack.enter_context(store_of(project))
        session = stack.enter_context(store.roster.session("token-one", "one@host", TIMING))
        session.begin([FEED, NIGHTLY])
        taken = session.take("feed")
        assert taken is not None
        assert session.run("feed", taken[1], pid=4711, again=False) == 2
        yield session


def test_singletons_are_listed_with_their_holders_and_how_they_are(project: Project, held: SqlSingletonSession) -> None:
    text = project("singleton")
    found = project("singleton", "list", "--output", "json").json

    head, *lines = (line.split() for line in text.out.splitlines())
    assert head == ["NAME", "KIND", "HOLDER", "SINCE", "HEARTBEAT", "S", "HEALTHY", "RESTARTS", "LAST", "FAILURE"]
    assert [line[:3] for line in lines] == [["feed", "loop", "one@host"], ["nightly", "loop", "-"]]
    feed, nightly = found
    fields = ("name", "group", "holder", "fence", "pid", "healthy", "restarts", "last_failure", "wanted")
    assert [feed[name] for name in fields] == ["feed", "default", "one@host", 2, 4711, True, 0, None, None]
    assert feed["since"] is not None
    assert feed["heartbeat_s"] < 5
    assert [nightly[name] for name in fields] == ["nightly", "other", None, 0, None, False, 0, None, None]


def test_a_failure_is_shown_and_makes_it_unhealthy(project: Project, held: SqlSingletonSession) -> None:
    held.end("feed", 2, "ValueError: 5 %")

    [feed] = [one for one in project("singleton", "--output", "jsonl").jsonl if one["name"] == "feed"]

    assert (feed["healthy"], feed["pid"], feed["last_failure"]) == (False, None, "ValueError: 5 %")
    assert feed["failed"] is not None


def test_a_restart_is_asked_for(project: Project, held: SqlSingletonSession) -> None:
    ran = project("singleton", "restart", "feed", "--output", "json")

    assert (ran.code, ran.json["name"], ran.json["holder"]) == (0, "feed", "one@host")
    assert held.look(["feed"], {"feed": 2})["feed"].restart_wanted


def test_a_move_is_asked_for(project: Project, held: SqlSingletonSession) -> None:
    there = project("singleton", "move", "feed", "--to", "two@host", "--output", "json")
    seat = held.look(["feed"], {"feed": 2})["feed"]
    away = project("singleton", "move", "feed", "--output", "json")
    then = held.look(["feed"], {"feed": 2})["feed"]

    assert (there.code, there.json["wanted"], seat.wanted, seat.avoided) == (0, "two@host", "token-two", None)
    assert (away.code, away.json["wanted"], then.wanted, then.avoided) == (0, None, None, "token-one")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("restart", "unknown"), "the cluster has never run a singleton 'unknown'"),
        (("move", "unknown"), "the cluster has never run a singleton 'unknown'"),
        (("move", "feed", "--to", "nobody@host"), "no living runner is called 'nobody@host'"),
        (
            ("move", "nightly", "--to", "two@host"),
            "the runner two@host does not host the group 'other' of nightly",
        ),
    ],
    ids=["restart", "move", "runner", "group"],
)
def test_what_is_not_there_is_code_3(
    project: Project, held: SqlSingletonSession, words: tuple[str, ...], said: str
) -> None:
    ran = project("singleton", *words)

    assert (ran.code, ran.complaint, ran.out) == (3, said, "")
