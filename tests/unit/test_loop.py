"""What can be registered as a loop, and what it is told when it runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entitycelery import Entity, EntityCelery, LoopContext
from entitycelery.exceptions import ConfigurationError
from entitycelery.loop import Heartbeats, Loop, registered_loop
from entitycelery.worker.steps import _check_loops

CALLS: list[tuple[str, tuple[object, ...]]] = []
STOP = threading.Event()


def plain(stop: threading.Event) -> None:
    CALLS.append(("plain", (stop,)))


def with_context(stop: threading.Event, context: LoopContext) -> None:
    CALLS.append(("with_context", (stop, context)))


def with_another_name(stop: threading.Event, leadership: LoopContext) -> None:
    CALLS.append(("with_another_name", (stop, leadership)))


def with_optional_context(stop: threading.Event, context: LoopContext | None = None) -> None:
    CALLS.append(("with_optional_context", (stop, context)))


def with_options(stop: threading.Event, verbose: bool = False) -> None:
    CALLS.append(("with_options", (stop, verbose)))


async def coroutine(stop: threading.Event) -> None: ...


def generator(stop: threading.Event) -> Any:
    yield


def nothing() -> None: ...


def three(stop: object, context: object, more: object) -> None: ...


@pytest.fixture
def entities() -> EntityCelery:
    return EntityCelery()


def context_of(loop: Loop) -> LoopContext:
    return LoopContext(loop.name, 7, Heartbeats())


def test_a_loop_stays_a_function_and_is_known_by_its_name(entities: EntityCelery) -> None:
    assert entities.singleton(plain) is plain
    assert entities.singleton(name="other", shard_group="gpu", heartbeat_interval_s=1)(with_context) is with_context

    other, first = entities.loops
    assert [other.name, first.name] == ["other", "plain"]
    assert (first.spec.module, first.spec.qualname, first.spec.shard_group) == (__name__, "plain", "default")
    assert (other.spec.shard_group, other.spec.heartbeat_interval_s) == ("gpu", 1.0)


def test_another_process_finds_it_by_its_module_and_name(entities: EntityCelery) -> None:
    entities.singleton(plain)
    [loop] = entities.loops

    assert registered_loop(loop.spec) is loop
    assert loop.owner is entities
    entities.singleton(name="twice")(plain)
    assert registered_loop(entities.loops[1].spec).name == "twice"
    del entities._loops["plain"], loop
    gone = Loop(plain, entities, name="gone").spec
    with pytest.raises(ConfigurationError, match="registers no loop 'gone' of plain when it is imported"):
        registered_loop(gone)


def test_a_name_belongs_to_one_function(entities: EntityCelery) -> None:
    entities.singleton(plain)
    entities.singleton(plain)

    with pytest.raises(ConfigurationError, match=r"two singletons are named 'plain': plain in .* and with_context in"):
        entities.singleton(name="plain")(with_context)


@pytest.mark.parametrize(
    ("function", "gets_context"),
    [
        (plain, False),
        (with_context, True),
        (with_another_name, True),
        (with_optional_context, True),
        (with_options, False),
    ],
)
def test_a_second_parameter_is_the_context_unless_it_is_something_else(
    entities: EntityCelery, function: Callable[..., None], gets_context: bool
) -> None:
    loop = Loop(function, entities)
    context = context_of(loop)
    CALLS.clear()

    loop.run(STOP, context)

    [(name, (stop, *more))] = CALLS
    assert (name, stop) == (function.__name__, STOP)
    assert (context in more) is gets_context


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (coroutine, "the loop coroutine is a plain function"),
        (generator, "the loop generator is a plain function"),
        (lambda stop: None, "cannot be imported by another process"),
        (functools.partial(plain, STOP), "a loop is a plain function of a module"),
        (nothing, "nothing: a loop is a function run"),
        (three, "three: a loop is a function run"),
    ],
    ids=["async", "generator", "lambda", "partial", "nothing", "three"],
)
def test_what_cannot_be_a_loop_is_refused(entities: EntityCelery, function: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        entities.singleton(function)


def test_an_interval_belongs_to_a_class_and_to_no_function(entities: EntityCelery) -> None:
    class Ticking(Entity):
        count: int = 0

    with pytest.raises(ConfigurationError, match=r"singleton of the class .*Ticking takes every_s="):
        entities.singleton(Ticking)
    with pytest.raises(ConfigurationError, match="every_s is for an Entity class"):
        cast("Any", entities.singleton(every_s=5))(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"restart_backoff_s": 0},
        {"restart_backoff_max_s": float("inf")},
        {"heartbeat_interval_s": True},
        {"heartbeat_interval_s": "5"},
        {"shard_group": "no group"},
        {"shard_group": None},
        {"name": ""},
        {"on_become_leader": 5},
        {"on_lose_leadership": coroutine},
        {"on_lose_leadership": three},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_are_checked_at_registration(entities: EntityCelery, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        entities.singleton(**options)(plain)


def test_hooks_get_the_context_if_they_take_it(entities: EntityCelery) -> None:
    heard: list[object] = []
    loop = Loop(
        plain,
        entities,
        on_become_leader=lambda context: heard.append(context),
        on_lose_leadership=lambda: heard.append(1),
    )
    context = context_of(loop)

    loop.call_hook("on_become_leader", context)
    loop.call_hook("on_lose_leadership", context)
    Loop(plain, entities).call_hook("on_become_leader", context)

    assert heard == [context, 1]


def test_a_worker_does_not_start_with_a_loop_that_no_other_process_can_import(entities: EntityCelery) -> None:
    def run(stop: threading.Event) -> None: ...

    run.__module__, run.__qualname__ = "__main__", "run"
    entities.singleton(run)

    with pytest.raises(ConfigurationError, match="the loop run is defined in the program that was started"):
        _check_loops(entities)
    _check_loops(cast("EntityCelery", SimpleNamespace(loops=[])))


# Heartbeats


def test_heartbeats_are_written_by_themselves_until_the_loop_beats() -> None:
    beats = Heartbeats()
    context = LoopContext("feed", 7, beats)

    assert [beats.take(), beats.take()] == [True, True]
    context.heartbeat()
    context.heartbeat()
    assert [beats.take(), beats.take()] == [True, False]
    context.heartbeat()
    assert beats.take()
    assert repr(context) == "<LoopContext feed fence 7>"
