"""Schedules: each tick fires once, whoever drives them, and a schedule never dies. Time passes by hand here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.schedules import crontab, schedule

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import ConfigurationError, MalformedMessage, UnknownSchedule
from entitycelery.scheduler.recurrence import Every
from entitycelery.scheduler.ticker import Ticker
from tests.client.support import Account, change, drain, make_entities, time_passes

TEN, MINUTE, HOUR = (Every(seconds, datetime(2026, 1, 1, tzinfo=UTC)) for seconds in (10, 60, 3600))


class Recorder(Entity):
    at: list[datetime] = []
    notes: list[str] = []

    @handler
    def record(self, scheduled_at: datetime) -> None:
        self.at.append(scheduled_at)

    @handler
    def note(self, text: str) -> None:
        self.notes.append(text)

    @handler
    def fail(self) -> None:
        raise ValueError


@pytest.fixture
def entities(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    made = make_entities(store_url, cluster_name)
    made.register(Recorder)
    yield made
    made.close()


def recorder() -> Recorder:
    return Recorder.ref("r")


def ticker(entities: EntityCelery) -> Ticker:
    store = entities.store
    return Ticker(
        store.timetable,
        entities.settings.cluster,
        shards_per_group=lambda: store.shards_per_group,
        stored=lambda shards: None,
    )


def tick(entities: EntityCelery) -> float | None:
    """One look of a scheduler, and the turns that follow."""
    next_s = ticker(entities).run()
    drain(entities)
    return next_s


def moved_back(entities: EntityCelery, name: str, seconds: float) -> None:
    """Make a schedule's next tick one that was due so many seconds ago."""
    at = entities.schedule_of(name).next_at
    assert at is not None
    earlier = at - timedelta(seconds=seconds)
    instant = entities.store.dialect.from_epoch(f"{earlier.timestamp()!r}")
    change(
        entities.store,
        f"UPDATE {{schedule}} SET tick = '{earlier.isoformat()}', tick_at = {instant}, look_at = {instant} "  # noqa: S608
        f"WHERE name = '{name}'",
    )


def recorded(entities: EntityCelery) -> list[datetime]:
    return entities.state(recorder()).at


def test_a_tick_is_a_message_that_tells_its_instant(entities: EntityCelery) -> None:
    status = entities.schedule("report", when=TEN, target=recorder().record)
    assert (status.status, status.target, status.fired) == ("active", "Recorder/r record", 0)
    moved_back(entities, "report", 10)
    [first] = entities.next_ticks("report", 1)

    tick(entities)

    status = entities.schedule_of("report")
    assert recorded(entities)[0] == first.at
    assert len(recorded(entities)) == status.fired
    assert status.last_tick == recorded(entities)[-1].isoformat()
    assert status.next_at == recorded(entities)[-1] + timedelta(seconds=10)


def test_what_is_not_due_does_not_fire_and_says_when(entities: EntityCelery) -> None:
    entities.schedule("later", at=datetime.now(UTC) + timedelta(hours=1), target=recorder().record)

    next_s = tick(entities)

    assert next_s is not None
    assert 3500 < next_s <= 3600
    assert recorded(entities) == []


def test_a_single_instant_fires_once_and_the_schedule_is_finished(entities: EntityCelery) -> None:
    entities.schedule("once", at=datetime.now(UTC) + timedelta(hours=1), target=recorder().note, args=["x"])

    moved_back(entities, "once", 3601)
    tick(entities)
    tick(entities)

    assert entities.state(recorder()).notes == ["x"]
    assert entities.schedule_of("once").status == "finished"
    assert entities.next_ticks("once") == []


def test_any_number_of_schedulers_at_once_fire_each_tick_once(entities: EntityCelery) -> None:
    names = [f"s{number}" for number in range(40)]
    for name in names:
        entities.schedule(name, when=HOUR, target=recorder().record)
        moved_back(entities, name, 3600)
    together = threading.Barrier(4)

    def run() -> None:
        together.wait()
        ticker(entities).run()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drain(entities)

    assert len(recorded(entities)) == len(names)


def test_a_scheduler_that_fires_a_tick_of_before_does_not_fire_it_again(entities: EntityCelery) -> None:
    # As if a backup had been restored, or somebody had edited the row.
    entities.schedule("report", when=HOUR, target=recorder().record)
    for _ in range(3):
        moved_back(entities, "report", 3600)
        tick(entities)

    assert len(recorded(entities)) == 1


def test_late_ticks_are_made_up_for_as_the_schedule_says(entities: EntityCelery) -> None:
    misfires: dict[str, Any] = {"skip": {}, "latest": {}, "all": {"catch_up_per_s": 1000.0}}
    for misfire, more in misfires.items():
        entities.schedule(misfire, when=MINUTE, target=Recorder.ref(misfire).record, misfire=misfire, **more)
        moved_back(entities, misfire, 600)

    for _ in range(20):
        tick(entities)

    fired = {misfire: len(entities.state(Recorder.ref(misfire)).at) for misfire in misfires}
    # Ten are due; those of the last minute, one or two of them, fire in any case.
    assert fired["skip"] in (0, 1, 2)
    assert fired["latest"] == fired["skip"] + 1
    assert fired["all"] in (10, 11)
    assert entities.schedule_of("skip").skipped + fired["skip"] == fired["all"]


def test_overlap_skip_leaves_out_what_comes_while_one_waits(entities: EntityCelery) -> None:
    entities.schedule("skip", when=TEN, target=recorder().record, overlap="skip")
    entities.schedule("queue", when=TEN, target=recorder().record)
    for name in ("skip", "queue"):
        moved_back(entities, name, 30)
    ticker(entities).run()

    assert entities.schedule_of("queue").fired in (3, 4)
    assert entities.schedule_of("skip").fired == 1
    assert entities.schedule_of("skip").skipped in (2, 3)
    for name, fired in (("skip", 1), ("skip", 1)):
        moved_back(entities, name, 40)
        ticker(entities).run()
        assert entities.schedule_of(name).fired == fired
    drain(entities)
    moved_back(entities, "skip", 50)
    ticker(entities).run()
    assert entities.schedule_of("skip").fired == 2


def test_overlap_cancel_running_ends_the_one_before(entities: EntityCelery) -> None:
    entities.schedule("it", when=TEN, target=recorder().record, overlap="cancel_running")
    first = entities.trigger_schedule("it")

    moved_back(entities, "it", 10)
    ticker(entities).run()

    reply = entities.reply(first)
    assert reply is not None
    assert reply.status == "cancelled"
    assert len(entities.messages(recorder())) == 1


def test_a_paused_schedule_is_silent_and_goes_on_from_now(entities: EntityCelery) -> None:
    entities.schedule("report", when=TEN, target=recorder().record)
    assert entities.pause_schedule("report").status == "paused"
    moved_back(entities, "report", 1000)
    tick(entities)
    assert recorded(entities) == []

    status = entities.resume_schedule("report")
    tick(entities)

    assert status.status == "active"
    assert status.next_at is not None
    assert status.next_at > datetime.now(UTC) - timedelta(seconds=5)
    assert len(recorded(entities)) <= 1


def test_a_schedule_that_is_stored_again_paused_is_paused(entities: EntityCelery) -> None:
    entities.schedule("report", when=TEN, target=recorder().record)

    assert entities.schedule("report", when=TEN, target=recorder().record, paused=True).status == "paused"
    assert entities.schedule("report", when=TEN, target=recorder().record).status == "paused"


def test_a_trigger_fires_at_once_beside_the_ticks_of_a_paused_one_too(entities: EntityCelery) -> None:
    entities.schedule("report", cron="0 0 1 1 *", target=recorder().record, paused=True)
    before = entities.schedule_of("report")

    entities.trigger_schedule("report")
    entities.trigger_schedule("report")
    drain(entities)

    assert len(recorded(entities)) == 2
    assert entities.schedule_of("report") == before


def test_a_backfill_fires_what_has_not_fired(entities: EntityCelery) -> None:
    entities.schedule("hourly", cron="0 * * * *", target=recorder().record, timezone="Europe/Berlin")
    start = datetime(2026, 3, 29, tzinfo=UTC)

    first = entities.backfill_schedule("hourly", start, start + timedelta(hours=4))
    second = entities.backfill_schedule("hourly", start, start + timedelta(hours=5))
    drain(entities)

    assert (len(first), len(second)) == (4, 1)
    assert recorded(entities) == [start + timedelta(hours=hour) for hour in range(5)]


def test_a_backfill_has_a_limit_and_wants_instants(entities: EntityCelery) -> None:
    entities.schedule("second", when=1, target=recorder().record)
    later = datetime.now(UTC) + timedelta(days=1)

    with pytest.raises(ConfigurationError, match="more than 10,000 ticks"):
        entities.backfill_schedule("second", later, later + timedelta(days=365))
    with pytest.raises(ConfigurationError, match="time zone"):
        entities.backfill_schedule("second", datetime(2026, 1, 1), later)


def test_the_same_schedule_stored_again_goes_on_where_it_is(entities: EntityCelery) -> None:
    first = entities.schedule("report", cron="0 3 * * *", target=recorder().record)
    moved_back(entities, "report", 5)
    moved = entities.schedule_of("report")

    again = entities.schedule("report", cron="0 3 * * *", target=recorder().record, jitter_s=5)
    other = entities.schedule("report", cron="0 4 * * *", target=recorder().record)

    assert again.next_at == moved.next_at != first.next_at
    assert other.next_at != moved.next_at


def test_a_schedule_that_cannot_be_read_is_failing_and_holds_nothing_back(entities: EntityCelery) -> None:
    entities.schedule("bad", when=TEN, target=recorder().record)
    entities.schedule("good", when=TEN, target=recorder().record)
    change(entities.store, """UPDATE {schedule} SET definition = '{"odd": 1}' WHERE name = 'bad'""")
    moved_back(entities, "bad", 10)
    moved_back(entities, "good", 10)

    tick(entities)

    bad = entities.schedule_of("bad")
    assert bad.status == "failing"
    assert bad.failure is not None
    assert "definition of a schedule" in bad.failure
    assert recorded(entities)
    entities.schedule("bad", when=TEN, target=recorder().note, args=["mended"])
    assert entities.schedule_of("bad").failure is None
    moved_back(entities, "bad", 10)
    tick(entities)
    assert entities.state(recorder()).notes
    assert entities.schedule_of("bad").status == "active"


def test_a_handler_that_fails_leaves_the_next_tick_standing(entities: EntityCelery) -> None:
    entities.schedule("fails", when=TEN, target=recorder().fail)
    for passed_s in (10, 20, 30):
        moved_back(entities, "fails", passed_s)
        tick(entities)
    status = entities.schedule_of("fails")
    assert status.fired >= 3
    assert status.status == "active"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "one of cron, every_s, at and when; got 0"),
        ({"cron": "* * * * *", "every_s": 5}, "got 2"),
        ({"cron": "0 0 30 2 *"}, "0 0 30 2"),
        ({"cron": "nonsense"}, "nonsense"),
        ({"cron": "0 3 * * *", "timezone": "Europe/Atlantis"}, "Europe/Atlantis"),
        ({"every_s": 0.2}, "every_s must be from 1"),
        ({"every_s": 5, "misfire": "perhaps"}, "misfire must be one of skip, latest, all"),
        ({"every_s": 5, "overlap": "perhaps"}, "overlap must be one of queue, skip, cancel_running"),
        ({"every_s": 5, "jitter_s": -1}, "jitter_s"),
        ({"when": object()}, "is no schedule that can be stored"),
        ({"at": datetime(2030, 1, 1)}, "time zone"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence_and_stored_nowhere(
    entities: EntityCelery, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        entities.schedule("bad", target=recorder().record, **given)
    assert entities.schedules() == []


def test_a_target_that_makes_no_sense_is_refused(entities: EntityCelery) -> None:
    with pytest.raises(MalformedMessage, match="text"):
        entities.schedule("bad", every_s=5, target=recorder().note, args=[1])
    for target, sentence in (
        (recorder(), "target of a schedule is an operation"),
        (recorder().note.options(key="k").prepare("x"), "has no options"),
        ("", "target of a schedule"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            entities.schedule("bad", every_s=5, target=target)
    with pytest.raises(ConfigurationError, match="when a Celery task ends is not known"):
        entities.schedule("bad", every_s=5, target="bank.task", overlap="skip")
    with pytest.raises(ConfigurationError, match="1 to 200 printable"):
        entities.schedule("", every_s=5, target="bank.task")
    assert entities.schedules() == []


@pytest.mark.parametrize(
    "verb",
    [
        lambda e: e.schedule_of("x"),
        lambda e: e.pause_schedule("x"),
        lambda e: e.resume_schedule("x"),
        lambda e: e.trigger_schedule("x"),
        lambda e: e.next_ticks("x"),
        lambda e: e.remove_schedule("x"),
        lambda e: e.backfill_schedule("x", datetime.now(UTC), datetime.now(UTC)),
    ],
)
def test_an_unknown_schedule_is_said_to_be_one(entities: EntityCelery, verb: Callable[[EntityCelery], Any]) -> None:
    with pytest.raises(UnknownSchedule, match="no schedule 'x'"):
        verb(entities)


def test_a_removed_schedule_fires_no_more(entities: EntityCelery) -> None:
    entities.schedule("report", when=TEN, target=recorder().record)
    entities.remove_schedule("report")

    tick(entities)

    assert entities.schedules() == []


def test_functions_and_handlers_with_cron_are_stored_and_called(entities: EntityCelery) -> None:
    calls: list[object] = []

    @entities.cron("0 3 * * *", timezone="Europe/Berlin")
    def nightly(scheduled_at: datetime) -> None:
        calls.append(scheduled_at)
        Account.ref("alice").deposit.send(5)

    @entities.cron(timedelta(minutes=5), name="five")
    async def five() -> None:
        calls.append("five")

    @entities.register
    class Cleaner(Entity):
        runs: int = 0

        @entities.cron(crontab(minute=0, hour=4), entity_id="main")
        @handler
        def clean(self) -> None:
            self.runs += 1

    assert entities.store_schedules()[0] == ["Cleaner/main.clean", "five", "nightly"]
    for name in ("Cleaner/main.clean", "five", "nightly"):
        entities.trigger_schedule(name)
    drain(entities)

    assert "five" in calls
    assert len(calls) == 2
    assert entities.state(Cleaner.ref("main")).runs == 1
    assert entities.state(Account.ref("alice")).balance == 5
    nightly_at = entities.schedule_of("nightly").next_at
    assert nightly_at is not None
    assert nightly_at.hour in (1, 2)


def test_code_that_says_the_same_changes_nothing_and_what_it_says_no_more_can_be_pruned(entities: EntityCelery) -> None:
    @entities.cron("0 3 * * *")
    def nightly() -> None: ...

    entities.store_schedules()
    entities.schedule("mine", when=TEN, target=recorder().record)
    entities.pause_schedule("nightly")
    entities.store_schedules()
    assert entities.schedule_of("nightly").status == "paused"

    entities._declared.clear()
    assert entities.store_schedules(prune=True) == ([], ["nightly"])
    assert [one.name for one in entities.schedules()] == ["mine"]


def test_code_that_makes_no_sense_is_refused(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="takes no argument or scheduled_at"):
        entities.cron("0 3 * * *")(lambda what: None)
    with pytest.raises(ConfigurationError, match="needs entity_id="):
        entities.cron("0 3 * * *")(Recorder.note)

    @entities.cron("0 0 30 2 *")
    def never() -> None: ...

    with pytest.raises(ConfigurationError, match="schedule 'never'"):
        entities.store_schedules()


def test_two_declarations_of_one_name_are_refused(entities: EntityCelery) -> None:
    entities.beat_schedule({"report": {"task": "a", "schedule": 10}})

    with pytest.raises(ConfigurationError, match="two schedules are named 'report'"):

        @entities.cron("0 3 * * *", name="report")
        def other() -> None: ...


def test_a_beat_schedule_is_taken_as_it_is(entities: EntityCelery) -> None:
    entities.beat_schedule(
        {
            "number": {"task": "bank.add", "schedule": 30.0, "args": (1, 2)},
            "delta": {"task": "bank.add", "schedule": timedelta(minutes=1), "kwargs": {"x": 1}},
            "crontab": {"task": "bank.add", "schedule": crontab(hour=7, minute=30, day_of_week=1)},
            "interval": {"task": "bank.add", "schedule": schedule(10), "options": {"queue": "slow", "expires": 5}},
        }
    )
    entities.store_schedules()

    assert {one.name: (one.target, one.origin) for one in entities.schedules()} == dict.fromkeys(
        ["number", "delta", "crontab", "interval"], ("task bank.add", "code")
    )
    with pytest.raises(ConfigurationError, match="has a task, a schedule"):
        entities.beat_schedule({"odd": {"tusk": "x"}})


def test_a_tick_for_a_task_sends_it_under_the_same_id_each_time(
    entities: EntityCelery, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[Any, ...]] = []
    failures = [OSError("a cut line")]

    def send_task(name: str, args: Any, kwargs: Any, **options: Any) -> None:
        sent.append((name, args, kwargs, options))
        if failures:
            raise failures.pop()

    # The broker's part is shown with real workers; here the broker is one that fails once.
    kind = next(kind for kind in entities._composed().registry if kind.name == "entity.tasks")
    assert kind.cls is not None
    monkeypatch.setattr(type(entities.app), "send_task", lambda self, *a, **k: send_task(*a, **k))
    entities.schedule("job", when=TEN, target="bank.add", args=[1, 2], task_options={"queue": "slow"})

    message_id = entities.trigger_schedule("job")
    drain(entities)
    time_passes(entities, 100)
    drain(entities)

    assert [one[0] for one in sent] == ["bank.add"] * len(sent)
    assert {one[3]["task_id"] for one in sent} == {message_id}
    assert sent[0][1:3] == ([1, 2], {})
    assert sent[0][3]["queue"] == "slow"


def test_the_next_ticks_are_told(entities: EntityCelery) -> None:
    entities.schedule("report", cron="30 2 * * *", timezone="Europe/Berlin", target=recorder().record)

    ticks = entities.next_ticks("report", 3)

    assert len(ticks) == 3
    assert all(one.nominal.endswith("T02:30:00") for one in ticks)


def test_a_stored_tick_that_the_expression_no_longer_has_is_logged_and_fires_as_it_was_stored(
    entities: EntityCelery, caplog: pytest.LogCaptureFixture
) -> None:
    # As after an update of croniter that reads `59/15` otherwise.
    entities.schedule("odd", cron="0 * * * *", target=recorder().record)
    entities.schedule("even", cron="0 * * * *", target=recorder().record)
    moved_back(entities, "odd", 1830)
    stored = entities.schedule_of("odd")

    ticker(entities).compare()

    [record] = [one for one in caplog.records if one.name == "entitycelery.scheduler"]
    assert "schedule odd fires at" in record.getMessage()
    assert entities.schedule_of("odd").next_tick == stored.next_tick


def test_overlap_cancel_running_drops_what_the_running_turn_has_done(entities: EntityCelery) -> None:
    started, go_on = threading.Event(), threading.Event()

    @entities.register
    class Slow(Entity):
        done: list[datetime] = []

        @handler
        def work(self, scheduled_at: datetime) -> None:
            if not started.is_set():
                started.set()
                assert go_on.wait(30)
            self.done.append(scheduled_at)

    slow = Slow.ref("s")
    entities.schedule("slow", when=TEN, target=slow.work, overlap="cancel_running")
    first = entities.trigger_schedule("slow")
    drain_aside = threading.Thread(target=drain, args=(entities,))
    drain_aside.start()
    assert started.wait(30)

    moved_back(entities, "slow", 10)
    ticker(entities).run()
    go_on.set()
    drain_aside.join()
    drain(entities)

    reply = entities.reply(first)
    assert reply is not None
    assert reply.status == "cancelled"
    assert len(entities.state(slow).done) == 1
