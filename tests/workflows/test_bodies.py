"""What a body can do: each call once, in its order, however often the body is run."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

import pytest

from entitycelery import EntityCelery, Workflow
from entitycelery.exceptions import (
    ConfigurationError,
    KeyConflict,
    MalformedMessage,
    MessageCancelled,
    SerializationFailed,
    SignalTimeout,
    UnknownWorkflow,
    WorkflowCancelled,
)
from entitycelery.testing import EntityTestEnvironment, crash_everywhere
from tests.workflows.acts import DONE, do, refuse, undo
from tests.workflows.conftest import START


class ShakyError(Exception):
    """An error that passes."""


def test_steps_run_once_each_and_in_order(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def checkout(flow: Workflow, order: str) -> list[str]:
        return [flow.step(do, f"{order} {number}") for number in range(3)]

    run = checkout.options(key="o1").start("tea")

    assert run.result() == ["tea 0 done", "tea 1 done", "tea 2 done"]
    assert DONE == ["tea 0", "tea 1", "tea 2"]
    assert [entry.name for entry in run.history()] == ["do"] * 3
    assert (run.status().status, run.status().steps) == ("completed", 3)
    again = checkout.options(key="o1").start("tea")
    assert again.result() == run.result()
    assert DONE == ["tea 0", "tea 1", "tea 2"]


def test_a_step_that_fails_is_tried_again_and_its_failure_is_remembered(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    def shaky() -> int:
        DONE.append("try")
        if len(DONE) < 3:
            raise ShakyError
        return len(DONE)

    @entities.workflow
    def checkout(flow: Workflow) -> Any:
        patient = flow.options(autoretry_for=(ShakyError,), max_retries=5, retry_backoff=60, retry_jitter=False)
        tries = patient.step(shaky)
        try:
            flow.step(refuse, "it")
        except ValueError as exc:
            return [tries, str(exc)]

    run = checkout.start()
    env.run()
    assert DONE == ["try"]
    env.skip(seconds=60)
    assert DONE == ["try"] * 2
    env.skip(seconds=120)

    assert run.result() == [3, "it"]
    assert DONE == ["try", "try", "try", "refused it"]


def test_a_workflow_sleeps_and_waits(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def approval(flow: Workflow) -> list[Any]:
        flow.sleep(3600)
        approved = flow.wait("approved", bool)
        try:
            flow.options(timeout_s=60).wait("paid", int)
        except SignalTimeout as exc:
            return [approved, str(exc)]
        return []

    run = approval.options(key="k").start()
    env.run()
    assert (run.status().status, run.status().waits) == ("suspended", ())
    assert run.signal("approved", True) == "early"
    env.skip(hours=1)
    assert run.status().waits == ("paid",)
    assert run.status().status == "suspended"

    env.skip(minutes=2)

    assert run.result() == [True, "the signal 'paid' of approval/k was not completed in time"]


def test_a_failed_workflow_is_compensated_in_reverse_order(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def checkout(flow: Workflow) -> None:
        for what in ("stock", "card"):
            flow.step(do, what)
            flow.compensate(undo, what)
        flow.step(refuse, "parcel")

    run = checkout.options(key="k").start()
    env.run()

    assert DONE == ["stock", "card", "refused parcel", "undo card", "undo stock"]
    assert run.status().status == "failed"
    with pytest.raises(ValueError, match="parcel"):
        run.result()


def test_a_cancelled_workflow_is_compensated(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def checkout(flow: Workflow) -> None:
        flow.step(do, "stock")
        flow.compensate(undo, "stock")
        flow.wait("payment")
        flow.step(do, "ship")

    run = checkout.options(key="k").start()
    env.run()
    run.cancel()
    env.run()

    assert DONE == ["stock", "undo stock"]
    assert run.status().status == "cancelled"
    assert run.signal("payment") == "over"
    with pytest.raises(WorkflowCancelled, match="checkout/k was cancelled"):
        run.result()


def test_what_is_random_is_so_once(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    seen: list[tuple[Any, ...]] = []

    @entities.workflow
    def lottery(flow: Workflow) -> str:
        seen.append((flow.now(), flow.random(), flow.uuid()))
        flow.sleep(60)
        return str(seen[-1][2])

    run = lottery.start()
    env.skip(minutes=5)

    assert run.result() == str(seen[0][2])
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_workflow_sends_and_survives_every_crash(entities: EntityCelery, account: Any) -> None:
    @entities.workflow
    def salary(flow: Workflow, months: int) -> int:
        for month in range(months):
            flow.send(account.ref("ada").deposit, 100)
            flow.set_progress(month)
            flow.sleep(30 * 86_400)
        flow.step(do, "bonus")
        flow.compensate(undo, "bonus")
        flow.send(account.ref("ada").deposit, 1)
        return months

    def test(env: EntityTestEnvironment) -> None:
        run = salary.options(key="ada").start(3)
        env.skip(days=200)
        assert run.result() == 3
        assert run.status().progress == 2
        assert entities.state(account.ref("ada")).balance == 301

    assert crash_everywhere(entities, test) >= 8


def test_a_body_that_does_something_else_is_found_out(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    calls = [do, undo]

    @entities.workflow
    def fickle(flow: Workflow) -> None:
        flow.step(calls.pop(0), "x")
        flow.sleep(60)

    run = fickle.options(key="k").start()
    env.skip(minutes=2)

    [letter] = entities.dead_letters()
    assert letter.failure.message.startswith(
        "fickle/k, position 0: the journal has step 'do', and the body calls step 'undo'"
    )
    assert run.status().status == "suspended"


def test_a_workflow_that_begins_anew(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def counter(flow: Workflow, number: int) -> int:
        flow.step(do, str(number))
        if number < 3:
            flow.continue_as_new(number + 1)
        return number

    assert counter.start(0).result() == 3
    assert DONE == ["0", "1", "2", "3"]


def test_code_that_changed_keeps_its_old_branch_for_those_that_run(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    new = [False]

    @entities.workflow
    def fees(flow: Workflow) -> int:
        flow.step(do, "start")
        version = flow.version("fees", 2) if new[0] else 1
        if version == 2:
            flow.step(do, "fee")
        flow.sleep(60)
        return version

    old = fees.options(key="old").start()
    env.run()
    new[0] = True
    young = fees.options(key="young").start()
    env.skip(minutes=2)

    assert (old.result(), young.result()) == (1, 2)


def test_a_workflow_asks_entities_and_other_workflows(entities: EntityCelery, account: Any) -> None:
    @entities.workflow
    def twice(flow: Workflow, amount: int) -> int:
        flow.sleep(60)
        return 2 * flow.ask(account.ref("ada").deposit, amount)

    @entities.workflow
    def parent(flow: Workflow) -> list[Any]:
        answers: list[Any] = [flow.ask(account.ref("ada").deposit, 1), flow.child(twice, 4)]
        try:
            flow.ask(account.ref("ada").deposit, -1)
        except ValueError as exc:
            answers.append(str(exc))
        try:
            flow.child(twice, -5)
        except ValueError as exc:
            answers.append(str(exc))
        return answers

    def test(env: EntityTestEnvironment) -> None:
        run = parent.options(key="p").start()
        env.skip(minutes=5)
        assert run.result() == [1, 10, "no -1", "no -5"]
        assert entities.state(account.ref("ada")).balance == 5
        assert env.sent() == []

    assert crash_everywhere(entities, test) >= 10


def test_a_child_is_cancelled_with_its_parent(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def young(flow: Workflow) -> None:
        flow.step(do, "toy")
        flow.compensate(undo, "toy")
        flow.wait("ever")

    @entities.workflow
    def old(flow: Workflow) -> None:
        flow.child(young)

    run = old.options(key="o").start()
    env.run()
    run.cancel()
    env.run()

    assert (run.status().status, young.ref("o/0").status().status) == ("cancelled", "cancelled")
    assert DONE == ["toy", "undo toy"]


def test_an_asked_message_that_is_cancelled_is_an_answer_too(
    entities: EntityCelery, env: EntityTestEnvironment, account: Any
) -> None:
    @entities.workflow
    def ask(flow: Workflow) -> int:
        return flow.ask(account.ref("s").think)

    cancelled, answered = ask.options(key="c").start(), ask.options(key="a")
    env.run()
    [parked] = [message for message in entities.messages(account.ref("s")) if message.operation == "think"]
    entities.cancel(parked.id)
    env.run()
    with pytest.raises(MessageCancelled):
        cancelled.result()

    entities.signal(account.ref("s"), "idea").cancel()
    env.run()
    run = answered.start()
    env.run()
    entities.signal(account.ref("s"), "idea").succeed(7)
    env.run()
    assert run.result() == 7


def test_a_wait_at_the_beginning_does_not_answer_for_the_body(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    @entities.workflow
    def waits(flow: Workflow) -> str:
        approved = flow.wait("approved", bool)
        flow.sleep(60)
        return f"approved: {approved}"

    run = waits.options(key="k").start()
    run.signal("approved", True)
    env.skip(minutes=2)

    assert run.result() == "approved: True"


def test_bad_input_says_what_is_wrong(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    with pytest.raises(ConfigurationError, match="takes the flow as its first argument"):
        entities.workflow(lambda: None)  # type: ignore[arg-type, misc, return-value]
    with pytest.raises(ConfigurationError, match=r"@entities\.workflow goes on a function, not on 5"):
        entities.workflow(5)  # type: ignore[call-overload]

    @entities.workflow
    def bad(flow: Workflow, name: str, times: int = 1) -> None:
        for _ in range(times):
            flow.wait(name, int)

    with pytest.raises(MalformedMessage, match=r"argument 'name' of bad\.start: Expected `str`, got `int`"):
        bad.start(5)  # type: ignore[arg-type]
    bad.options(key="k").start("a")
    with pytest.raises(KeyConflict):
        bad.options(key="k").start("b")
    with pytest.raises(UnknownWorkflow, match="bad/x has not begun"):
        bad.ref("x").status()
    wrong = bad.start("w")
    wrong.signal("w", "text")
    with pytest.raises(MalformedMessage, match=r"the value of the signal 'w' of bad/.*: Expected `int`, got `str`"):
        wrong.result()


def test_a_journal_has_an_end(entities: EntityCelery) -> None:
    entities.app.conf.entity_workflow_max_steps = 20

    @entities.workflow
    def endless(flow: Workflow) -> None:
        while True:
            flow.now()

    with EntityTestEnvironment(entities):
        run = endless.options(key="k").start()

        with pytest.raises(ConfigurationError, match="endless/k has 20 entries in its journal"):
            run.result()


def test_a_body_that_swallows_its_own_divergence_is_found_out_all_the_same(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    calls = [do, undo]

    @entities.workflow
    def careless(flow: Workflow) -> str:
        try:
            flow.step(calls.pop(0), "x")
        except Exception:  # noqa: BLE001 - what a user may write
            return "wrong"
        flow.sleep(60)
        return "right"

    run = careless.options(key="k").start()
    env.skip(minutes=2)

    assert run.status().status == "suspended"
    [letter] = entities.dead_letters()
    assert letter.reason == "NonDeterminism"


def test_a_body_that_ends_before_its_journal_does_is_found_out(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    short = [False]

    @entities.workflow
    def shorter(flow: Workflow) -> str:
        if not short[0]:
            flow.step(do, "x")
            flow.sleep(60)
        return "done"

    run = shorter.options(key="k").start()
    env.run()
    short[0] = True
    env.skip(minutes=2)
    [letter] = entities.dead_letters()
    assert "position 0: the journal has step 'do', and the body ends" in letter.failure.message

    # With the code mended it goes on.
    short[0] = False
    entities.retry_dead(letter.id)
    env.run()
    assert run.result() == "done"


def test_options_that_no_call_takes_are_refused(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def hasty(flow: Workflow) -> None:
        flow.options(timeout_s=5).sleep(60)

    with pytest.raises(ConfigurationError, match=r"flow.options\(...\) has timeout_s, and sleep takes none"):
        hasty.start().result()


def test_a_start_beside_the_first_one_is_refused(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def waits(flow: Workflow) -> None:
        flow.wait("ever")

    run = waits.options(key="k").start()
    env.run()

    with pytest.raises(KeyConflict, match="waits/k was started before"):
        run.ref.start.ask()


def test_a_schedule_starts_a_workflow_at_each_tick(entities: EntityCelery) -> None:
    @entities.cron("30 2 * * *", timezone="Europe/Berlin", misfire="all")
    @entities.workflow
    def nightly(flow: Workflow, scheduled_at: datetime) -> str:
        flow.sleep(60)
        return flow.step(do, scheduled_at.isoformat())

    def test(env: EntityTestEnvironment) -> None:
        entities.schedule("hourly", every_s=3600, target=nightly, kwargs={"scheduled_at": START}, overlap="skip")
        status = entities.schedule_of("hourly")
        assert status.target == "workflow nightly"
        env.skip(days=2)

        first = nightly.ref("nightly/2030-03-02T02:30:00")
        assert first.result() == "2030-03-02T01:30:00+00:00 done"
        assert nightly.ref("nightly/2030-03-03T02:30:00").status().status == "completed"
        assert len(entities.entities("nightly")) == 2 + 48

    with EntityTestEnvironment(entities, start=START) as env:
        test(env)


def test_a_workflow_is_triggered_and_cannot_be_dropped(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def report(flow: Workflow, name: str) -> str:
        return flow.step(do, name)

    entities.schedule("r", cron="0 3 * * *", target=report, args=["x"])
    entities.trigger_schedule("r")
    env.run()
    assert DONE == ["x"]
    with pytest.raises(ConfigurationError, match="drops a turn, and a workflow has many"):
        entities.schedule("r", cron="0 3 * * *", target=report, args=["x"], overlap="cancel_running")
    with pytest.raises(MalformedMessage, match=r"argument 'name' of report\.start"):
        entities.schedule("r", cron="0 3 * * *", target=report, args=[5])
    with pytest.raises(ConfigurationError, match="a workflow has none"):
        entities.schedule("r", cron="0 3 * * *", target=report, args=["x"], task_options={"queue": "q"})


def test_what_cannot_be_kept_fails_the_workflow_and_is_compensated(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    @entities.workflow
    def wrong(flow: Workflow, how: str) -> int:
        flow.compensate(undo, how)
        flow.sleep(60)
        if how == "progress":
            flow.set_progress(object())
        if how == "arguments":
            flow.continue_as_new(5)
        return "text" if how == "text" else object()  # type: ignore[return-value]

    for how, cls, said in (
        ("progress", SerializationFailed, "the progress of wrong/progress"),
        ("arguments", MalformedMessage, "argument 'how' of wrong.start: Expected `str`, got `int`"),
        ("text", SerializationFailed, "the result of wrong.start: Expected `int`, got `str`"),
        ("result", SerializationFailed, "the result of wrong.start"),
    ):
        run = wrong.options(key=how).start(how)
        env.skip(minutes=2)
        with pytest.raises(cls, match=said):
            run.result()
        assert run.status().status == "failed"
    assert DONE == ["undo progress", "undo arguments", "undo text", "undo result"]


def test_a_failed_workflow_is_retried_from_the_call_that_failed(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    broken = [True]
    keys: list[str] = []

    @entities.workflow
    def checkout(flow: Workflow) -> list[Any]:
        def ship() -> str:
            keys.append(flow.step_key)
            if broken[0]:
                raise ValueError("no parcel")
            return "parcel"

        first = flow.step(do, "charge")
        flow.sleep(60)
        return [first, flow.step(ship), flow.step(do, "mail")]

    run = checkout.options(key="k").start()
    env.skip(minutes=2)
    with pytest.raises(ValueError, match="no parcel"):
        run.result()
    broken[0] = False

    retry = run.retry()
    env.run()

    assert retry.result() == run.result() == ["charge done", "parcel", "mail done"]
    assert DONE == ["charge", "mail"]
    # What the step did before it failed may be there: another key lets it be done again.
    assert keys == ["checkout/k#2", "checkout/k#1:2"]
    assert run.status().status == "completed"
    assert run.status().failure is None
    with pytest.raises(ConfigurationError, match="checkout/k is completed: only what failed or was cancelled"):
        run.retry().result()


def test_what_was_undone_is_done_again_by_a_retry(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    broken = [True]

    @entities.workflow
    def checkout(flow: Workflow) -> str:
        flow.step(do, "look")
        flow.step(do, "charge")
        flow.compensate(undo, "charge")
        flow.step(do, "print")
        if broken[0]:
            flow.step(refuse, "ship")
        return "shipped"

    run = checkout.options(key="k").start()
    env.run()
    DONE.clear()

    with pytest.raises(ConfigurationError, match="has undone what position 1 did: begin from 1 or before, got 2"):
        run.retry(2).result()
    with pytest.raises(ConfigurationError, match="has the positions 0 to 4, got 9"):
        run.retry(9).result()
    with pytest.raises(ValueError, match="ship"):
        run.retry(1).result()
    assert DONE == ["charge", "print", "refused ship", "undo charge"]
    broken[0] = False
    DONE.clear()
    assert run.retry().result() == "shipped"
    assert DONE == ["look", "charge", "print"]


def test_a_cancelled_workflow_is_retried_from_where_it_waited(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    @entities.workflow
    def waits(flow: Workflow) -> str:
        flow.step(do, "it")
        return flow.wait("name", str)

    run = waits.options(key="k").start()
    env.run()
    run.cancel()
    env.run()
    assert run.status().status == "cancelled"

    retry = run.retry()
    env.run()
    assert run.status().waits == ("name",)
    run.signal("name", "tea")

    assert retry.result() == "tea"
    assert run.result() == "tea"
    assert DONE == ["it"]


def test_a_workflow_is_resumed_when_its_code_is_mended(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    calls = [do, undo]

    @entities.workflow
    def fickle(flow: Workflow) -> str:
        flow.step(calls[0], "x")
        flow.sleep(60)
        return "done"

    run = fickle.options(key="k").start()
    with pytest.raises(UnknownWorkflow):
        run.resume()
    env.run()
    calls.reverse()
    env.skip(minutes=2)
    assert len(entities.dead_letters()) == 1
    calls.reverse()

    assert len(run.resume()) == 1
    env.run()

    assert run.result() == "done"
    assert entities.dead_letters() == []


def test_a_crash_repeats_one_step_at_most(entities: EntityCelery) -> None:
    @entities.workflow
    def checkout(flow: Workflow) -> None:
        for number in range(4):
            flow.step(do, str(number))

    def test(env: EntityTestEnvironment) -> None:
        DONE.clear()
        checkout.options(key="k").start().result()
        assert set(DONE) == {"0", "1", "2", "3"}
        assert len(DONE) <= 5

    assert crash_everywhere(entities, test) == 4


def test_a_body_that_swallows_its_own_divergence_and_waits_is_not_committed(
    entities: EntityCelery, env: EntityTestEnvironment
) -> None:
    calls = [do, undo]

    @entities.workflow
    def careless(flow: Workflow) -> None:
        with contextlib.suppress(Exception):
            flow.step(calls.pop(0), "x")
        flow.sleep(60)
        flow.wait("ever")

    run = careless.options(key="k").start()
    env.skip(minutes=2)

    assert [entry.kind for entry in run.history()] == ["step", "sleep"]
    [letter] = entities.dead_letters()
    assert letter.reason == "NonDeterminism"
