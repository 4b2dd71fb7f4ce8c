"""Celery tasks of a workflow: the result comes back as mail, the first one counts, and a lost task is sent again."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore

from entitycelery import AsyncWorkflow, EntityCelery, Workflow
from entitycelery.exceptions import ConfigurationError, MalformedMessage, SerializationFailed, SignalTimeout
from entitycelery.testing import EntityTestEnvironment, crash_everywhere

SENT: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    SENT.clear()


@pytest.fixture
def pack(app: Celery) -> Any:
    @app.task(bind=True, name="shop.pack", shared=False)
    def pack(self: Any, number: int, wrong: str | None = None) -> int:
        SENT.append((self.name, self.request.id))
        if wrong == "fails":
            raise ValueError(f"no parcel {number}")
        if wrong == "no JSON":
            return object()  # type: ignore[return-value]
        if wrong == "text":
            return "text"  # type: ignore[return-value]
        return 2 * number

    return pack


@pytest.fixture
def app(entities: EntityCelery) -> Celery:
    return entities.app


def test_the_result_of_a_task_comes_back(entities: EntityCelery, pack: Any) -> None:
    @entities.workflow
    def ship(flow: Workflow) -> list[Any]:
        return [
            flow.task(pack, 1),
            flow.task(pack.s(2)),
            flow.task("shop.pack", number=3),
            *flow.gather(*[lambda at=at: flow.task(pack.si(at).set(queue="gpu")) for at in range(4, 7)]),  # type: ignore[misc]
        ]

    def test(env: EntityTestEnvironment) -> None:
        SENT.clear()
        run = ship.options(key="k").start()
        env.run()
        assert run.result() == [2, 4, 6, 8, 10, 12]
        # However often it was sent, it was the same task.
        assert len(set(SENT)) == 6
        assert env.sent() == []

    assert crash_everywhere(entities, test) >= 10


def test_a_task_fails(entities: EntityCelery, env: EntityTestEnvironment, pack: Any) -> None:
    @entities.workflow
    async def ship(flow: AsyncWorkflow, wrong: str) -> str:
        return str(await flow.task(pack, 7, wrong=wrong))

    for wrong, cls, said in (
        ("fails", ValueError, "no parcel 7"),
        ("no JSON", SerializationFailed, r"the result of the task shop.pack\["),
        ("text", MalformedMessage, "the result of the task shop.pack for ship/.*: Expected `int`, got `str`"),
    ):
        with pytest.raises(cls, match=said):
            ship.start(wrong).result()


def test_a_task_without_a_result_is_sent_again_under_the_same_id(
    entities: EntityCelery, env: EntityTestEnvironment, app: Celery
) -> None:
    lost: list[str] = []

    @app.task(bind=True, shared=False)
    def lose(self: Any) -> None:
        lost.append(self.request.id)
        raise Ignore

    @entities.workflow
    def ship(flow: Workflow) -> Any:
        return flow.race(lambda: flow.options(timeout_s=60).task(lose), lambda: flow.options(timeout_s=200).wait("x"))

    run = ship.options(key="k").start()
    env.run()
    assert len(lost) == 1
    env.skip(seconds=59)
    assert len(lost) == 1
    env.skip(seconds=62)
    assert len(lost) == 3
    [race] = run.history()
    assert race.branches is not None
    assert race.branches[0][0].attempt == 2
    env.skip(seconds=600)

    # The race is over, and it is not sent any more.
    assert len(lost) == 4
    assert len(set(lost)) == 1
    with pytest.raises(SignalTimeout):
        run.result()


def test_what_is_no_task_is_refused(entities: EntityCelery, env: EntityTestEnvironment, pack: Any) -> None:
    @entities.workflow
    def wrong(flow: Workflow, how: str) -> Any:
        return flow.task({"function": test_a_task_fails, "canvas": pack.s(1) | pack.s()}[how])

    with pytest.raises(ConfigurationError, match=r"flow.task\(...\) takes a Celery task, its name or a signature"):
        wrong.start("function").result()
    with pytest.raises(ConfigurationError, match="takes the signature of one task, got a chain"):
        wrong.start("canvas").result()
