"""Several branches of one body: gather waits for all, race for the first, and what loses is withdrawn."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from entitycelery import AsyncWorkflow, EntityCelery, Workflow
from entitycelery.exceptions import ConfigurationError, ReplyTimeout, WorkflowCancelled
from entitycelery.testing import EntityTestEnvironment, crash_everywhere
from tests.workflows.acts import DONE, do, refuse, undo


def test_branches_go_on_while_others_wait(entities: EntityCelery, account: Any) -> None:
    @entities.workflow
    def many(flow: Workflow) -> list[Any]:
        def patient() -> str:
            flow.sleep(60)
            return flow.step(do, "patient")

        def asker() -> int:
            return flow.ask(account.ref("ada").deposit, 1) + flow.ask(account.ref("ada").deposit, 2)

        return flow.gather(patient, asker, lambda: flow.wait("name", str), lambda: [flow.step(do, "a")])

    def test(env: EntityTestEnvironment) -> None:
        run = many.options(key="m").start()
        env.run()
        assert entities.state(account.ref("ada")).balance == 3
        assert run.status().waits == ("name",)
        run.signal("name", "tea")
        env.skip(minutes=2)
        assert run.result() == ["patient done", 4, "tea", ["a done"]]
        assert run.status().steps == 2
        assert env.sent() == []

    assert crash_everywhere(entities, test) >= 8
    assert set(DONE) == {"patient", "a"}


def test_a_gather_raises_once_all_have_ended_what_the_first_raised(
    entities: EntityCelery, env: EntityTestEnvironment, account: Any
) -> None:
    @entities.workflow
    def many(flow: Workflow) -> list[Any]:
        def sells() -> None:
            flow.sleep(60)
            flow.step(do, "sale")
            flow.compensate(undo, "sale")

        return flow.gather(
            lambda: flow.ask(account.ref("ada").deposit, -1), sells, lambda: flow.ask(account.ref("ada").deposit, -2)
        )

    run = many.start()
    env.run()
    assert run.status().status == "suspended"
    env.skip(minutes=2)

    assert DONE == ["sale", "undo sale"]
    with pytest.raises(ValueError, match="no -1"):
        run.result()


def test_a_race_has_one_winner_and_the_others_wait_no_more(entities: EntityCelery, account: Any) -> None:
    @entities.workflow
    def child(flow: Workflow) -> None:
        flow.compensate(undo, "child")
        flow.wait("ever")

    @entities.workflow
    def paid(flow: Workflow) -> list[Any]:
        winner = flow.race(
            lambda: flow.wait("paid", int),
            lambda: flow.sleep(3600),
            lambda: flow.child(child),
            lambda: flow.ask(account.ref("slow").think),
            lambda: flow.race(lambda: flow.wait("nested"), lambda: flow.sleep(7200)),
        )
        flow.sleep(60)
        return [*winner, flow.options(timeout_s=1).race(lambda: 1) if winner[0] > 1 else "over"]

    def test(env: EntityTestEnvironment) -> None:
        DONE.clear()
        run = paid.options(key="p").start()
        env.run()
        assert set(run.status().waits) == {"paid", "nested"}
        assert [timer.due_epoch_s for timer in entities.timers(run.ref)] == [env.now.timestamp() + 3600]

        run.signal("paid", 7)
        env.run()

        assert [timer.due_epoch_s for timer in entities.timers(run.ref)] == [env.now.timestamp() + 60]
        assert run.status().waits == ()
        assert child.ref("p/0.2.0").status().status == "cancelled"
        assert set(DONE) == {"undo child"}
        # An answer that comes late changes nothing.
        entities.signal(account.ref("slow"), "idea").succeed(5)
        env.skip(hours=3)
        assert run.result() == [0, 7, "over"]
        assert env.sent() == []

    assert crash_everywhere(entities, test) >= 8


def test_what_a_losing_branch_did_is_compensated(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def race(flow: Workflow) -> None:
        def reserves() -> None:
            flow.step(do, "reserve")
            flow.compensate(undo, "reserve")
            flow.wait("ever")

        flow.race(reserves, lambda: flow.sleep(60))
        flow.step(refuse, "no")

    run = race.start()
    env.skip(minutes=2)

    with pytest.raises(ValueError, match="no"):
        run.result()
    assert DONE == ["reserve", "refused no", "undo reserve"]


def test_a_branch_that_has_lost_does_nothing_more(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def race(flow: Workflow) -> tuple[int, Any]:
        def retries() -> str:
            return flow.options(autoretry_for=(ValueError,), retry_backoff=60, retry_jitter=False).step(fails)

        def fails() -> None:
            do("try")
            raise ValueError

        won = flow.race(lambda: flow.sleep(30), retries, lambda: flow.step(do, "second"))
        flow.sleep(600)
        return won

    run = race.start()
    env.skip(hours=1)

    # The third one's step is run in the next turn, and has ended first.
    assert run.result() == (2, "second done")
    assert DONE == ["try", "second"]


def test_the_winner_of_a_race_fails(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def race(flow: Workflow) -> str:
        try:
            flow.race(lambda: flow.wait("x"), lambda: flow.step(refuse, "no"))
        except ValueError as exc:
            flow.sleep(60)
            return f"failed: {exc}"
        return "won"

    run = race.start()
    env.skip(minutes=2)

    assert run.result() == "failed: no"


def test_a_workflow_is_cancelled_in_all_its_branches(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def many(flow: Workflow) -> None:
        def sells(what: str) -> None:
            flow.step(do, what)
            flow.compensate(undo, what)
            try:
                flow.wait(what)
            except WorkflowCancelled:
                DONE.append(f"{what} knows")
                raise

        flow.gather(partial(sells, "a"), partial(sells, "b"), lambda: flow.race(lambda: flow.wait("c")))

    run = many.start()
    env.run()
    assert set(run.status().waits) == {"a", "b", "c"}
    run.cancel()
    env.run()

    assert run.status().status == "cancelled"
    assert run.status().waits == ()
    assert [what for what in DONE if "undo" in what] == ["undo b", "undo a"]
    assert "a knows" in DONE
    assert "b knows" in DONE


def test_waiting_for_an_answer_can_end(entities: EntityCelery, env: EntityTestEnvironment, account: Any) -> None:
    @entities.workflow
    def slow(flow: Workflow) -> None:
        flow.compensate(undo, "slow")
        flow.wait("ever")

    @entities.workflow
    def patient(flow: Workflow, policy: str) -> list[str]:
        said = []
        short = flow.options(timeout_s=60)
        for call in (
            lambda: short.ask(account.ref(flow.id).think),
            lambda: flow.options(timeout_s=60, parent_close_policy=policy).child(slow),  # type: ignore[arg-type]
        ):
            try:
                call()
            except ReplyTimeout as exc:
                said.append(str(exc))
        return said

    cancels, abandons = patient.options(key="c").start("cancel"), patient.options(key="a").start("abandon")
    env.skip(minutes=5)

    assert cancels.result() == [
        "ask 'Account.think' of patient/c was not answered in time",
        "child 'slow' of patient/c was not answered in time",
    ]
    assert slow.ref("c/1").status().status == "cancelled"
    assert slow.ref("a/1").status().status == "suspended"
    # An answer that comes later changes nothing.
    slow.ref("a/1").signal("ever")
    entities.signal(account.ref("a"), "idea").succeed(1)
    env.run()
    assert len(abandons.result()) == 2
    assert entities.dead_letters() == []


def test_an_abandoned_child_outlives_its_parent(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def young(flow: Workflow) -> str:
        return flow.wait("name", str)

    @entities.workflow
    def old(flow: Workflow) -> str:
        return flow.options(parent_close_policy="abandon").child(young)

    run = old.options(key="o").start()
    env.run()
    run.cancel()
    env.run()

    child = young.ref("o/0")
    assert (run.status().status, child.status().status) == ("cancelled", "suspended")
    child.signal("name", "x")
    env.run()
    assert child.result() == "x"


def test_a_body_that_is_async(entities: EntityCelery, account: Any) -> None:
    async def adopt(what: str) -> str:
        DONE.append(what)
        return f"{what} adopted"

    @entities.workflow
    async def many(flow: AsyncWorkflow, amount: int) -> list[Any]:
        first = await flow.step(adopt, "cat")
        flow.compensate(adopt, "nobody")
        both = await flow.gather(
            flow.ask(account.ref("ada").deposit, amount), flow.options(timeout_s=60).wait("name", str)
        )
        winner, _ = await flow.race(flow.sleep(60), flow.wait("other"))
        return [first, await flow.step(do, "x"), *both, winner, str(flow.now().year)]

    def test(env: EntityTestEnvironment) -> None:
        DONE.clear()
        run = many.options(key="m").start(5)
        run.signal("name", "tea")
        env.skip(minutes=2)
        result = run.result()
        assert result[:-1] == ["cat adopted", "x done", 5, "tea", 0]

    assert crash_everywhere(entities, test) >= 6


def test_an_async_body_fails_and_compensates(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    async def undo_later(what: str) -> None:
        undo(what)

    @entities.workflow
    async def sad(flow: AsyncWorkflow) -> None:
        await flow.step(do, "it")
        flow.compensate(undo_later, "it")
        await flow.step(refuse, "no")

    run = sad.start()

    with pytest.raises(ValueError, match="no"):
        run.result()
    assert DONE == ["it", "refused no", "undo it"]


def test_misuse_is_named(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.001)

    @entities.workflow
    def wrong(flow: Workflow, how: str) -> Any:
        match how:
            case "value":
                return flow.gather(5)  # type: ignore[arg-type]
            case "nobody":
                return flow.race()
            case "async":
                return flow.step(slow)
            case "policy":
                return flow.options(parent_close_policy="kill")  # type: ignore[arg-type]
            case _:
                return flow.options(max_retries=5).gather()

    @entities.workflow
    async def tasks(flow: AsyncWorkflow) -> None:
        await asyncio.gather(flow.step(do, "a"), flow.step(do, "b"))

    for how, said in {
        "value": r"flow.gather\(...\) takes functions without arguments, .* got 5",
        "nobody": r"flow.race\(...\) takes at least one branch",
        "async": "is a plain def and called something that is async",
        "policy": "parent_close_policy must be cancel or abandon, got 'kill'",
        "retry": "has options of a retry, and gather takes none",
    }.items():
        with pytest.raises(ConfigurationError, match=said):
            wrong.start(how).result()
    with pytest.raises(ConfigurationError, match="is called from a task of its own"):
        tasks.start().result()
    assert DONE == []


def test_another_number_of_branches_is_found_out(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    number = [3]

    @entities.workflow
    def many(flow: Workflow) -> list[None]:
        return flow.gather(*[lambda: flow.sleep(60)] * number[0])

    run = many.options(key="k").start()
    env.run()
    number[0] = 2
    env.skip(minutes=2)

    letters = entities.dead_letters()
    assert {letter.reason for letter in letters} == {"NonDeterminism"}
    assert "many/k, position 0: the gather has 3 branches, and the body gives 2" in letters[0].failure.message
    number[0] = 3
    assert len(run.resume()) == 1
    env.run()
    assert run.result() == [None] * 3


def test_what_began_anew_does_not_get_old_answers(
    entities: EntityCelery, env: EntityTestEnvironment, account: Any
) -> None:
    @entities.workflow
    def rounds(flow: Workflow, number: int) -> Any:
        if number == 0:
            flow.race(lambda: flow.ask(account.ref("slow").think), lambda: flow.sleep(1))
            flow.step(do, f"{flow.address} {number}")
            flow.continue_as_new(1)
        return flow.race(lambda: flow.ask(account.ref("other").think), lambda: flow.sleep(100))

    run = rounds.start(0)
    env.skip(seconds=2)
    entities.signal(account.ref("slow"), "idea").succeed(5)
    env.run()
    assert run.status().status == "suspended"
    entities.signal(account.ref("other"), "idea").succeed(6)
    env.run()
    assert run.result() == [0, 6]


def test_a_branch_begins_anew_while_another_waits(entities: EntityCelery, env: EntityTestEnvironment) -> None:
    @entities.workflow
    def rounds(flow: Workflow, number: int) -> str:
        def other() -> str:
            flow.sleep(60)
            return str(number) if number == 2 else flow.continue_as_new(number + 1)

        return ", ".join(flow.gather(lambda: flow.wait("word", str), other))

    run = rounds.start(0)
    env.skip(minutes=5)
    assert run.status().waits == ("word",)
    run.signal("word", "word")

    assert run.result() == "word, 2"
    assert entities.dead_letters() == []
