"""`WorkflowTestEnvironment` finds out what is different when a body is run again."""

from __future__ import annotations

import random
from typing import Any

import pytest

from entitycelery import AsyncWorkflow, EntityCelery, Workflow
from entitycelery.exceptions import NonDeterminism
from entitycelery.testing import WorkflowTestEnvironment

COUNTED: list[int] = []


@pytest.fixture
def entities(shop: Any) -> EntityCelery:
    found: EntityCelery = shop.entities
    COUNTED.clear()
    return found


def count() -> int:
    """Something that is never the same."""
    COUNTED.append(1)
    return len(COUNTED)


def do(number: int) -> int:
    return number


def test_a_body_that_is_deterministic_runs_as_ever(entities: EntityCelery) -> None:
    @entities.workflow
    def child(flow: Workflow) -> str:
        flow.step(count)
        return str(flow.uuid())

    @entities.workflow
    async def good(flow: AsyncWorkflow, number: int) -> list[Any]:
        if number < 2:
            await flow.sleep(60)
            flow.continue_as_new(number + 1)
        flow.compensate(do, 1)
        both = await flow.gather(flow.step(count), flow.child(child))
        won, _ = await flow.race(flow.wait("ever"), flow.sleep(flow.random()), flow.step(do, number))
        return [both[0], won, flow.now().year]

    @entities.workflow
    def bad(flow: Workflow) -> None:
        flow.compensate(do, 1)
        flow.compensate(do, 2)
        flow.wait("ever")

    with WorkflowTestEnvironment(entities) as env:
        run, cancelled = good.start(0), bad.start()
        env.skip(minutes=5)
        assert run.result()[1] == 2
        cancelled.cancel()
        env.run()
        assert [entry.kind for entry in cancelled.history()] == ["wait", "undo", "undo"]
        assert entities.dead_letters() == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("another call", r"wrong/k, position 0: the journal has sleep, and the body calls step 'do'"),
        ("arguments", r"wrong/k, position 0: step 'do' was called with \[\[1\],\{\}\], and with \[\[2\],\{\}\] when"),
        ("the result", r"wrong/k: the body returns 1, and returns 2 when it was run again"),
        ("an exception", r"wrong/k: the body raises ValueError: 1, and raises ValueError: 2 when it was run again"),
        ("no call", r"wrong/k: the body waits, and returns 0 when it was run again|and the body ends"),
        ("swallowed", r"wrong/k, position 0: the journal has sleep, and the body calls step 'do'"),
        ("branches", r"wrong/k, position 0: the gather has 1 branches, and the body gives 2"),
    ],
)
def test_a_body_that_is_not_is_found_out_at_once(entities: EntityCelery, how: str, said: str) -> None:
    @entities.workflow
    def wrong(flow: Workflow) -> int:
        number = count()
        if how == "another call":
            flow.sleep(60) if number == 1 else flow.step(do, 1)
        elif how == "arguments":
            flow.step(do, number)
            flow.sleep(60)
        elif how == "an exception":
            raise ValueError(number)
        elif how == "no call":
            if number == 1:
                flow.sleep(60)
            return 0
        elif how == "branches":
            flow.gather(*[lambda: flow.sleep(60)] * number)
        elif how == "swallowed":
            try:
                flow.sleep(60) if number == 1 else flow.step(do, 1)
            except NonDeterminism:
                flow.sleep(30)
        return number

    with WorkflowTestEnvironment(entities) as env:
        wrong.options(key="k").start()
        with pytest.raises(NonDeterminism, match=said):
            env.skip(minutes=5)


def test_what_cannot_be_compared_is_let_be(entities: EntityCelery) -> None:
    def call(function: Any) -> str:
        return str(function())

    @entities.workflow
    def objects(flow: Workflow) -> object:
        flow.step(call, lambda: random.random())
        return object()

    with WorkflowTestEnvironment(entities) as env:
        run = objects.start()
        with pytest.raises(Exception, match=r"the result of objects.start"):
            run.result()
        assert env.sent() == []
