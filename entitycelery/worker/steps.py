"""The bootsteps: one of the worker, which lives as long as the process, and one of each broker connection."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import click
from celery import bootsteps
from celery.worker import state

from entitycelery.app import EntityCelery, entities_of
from entitycelery.exceptions import ConfigurationError, EntityError, StoreUnavailable
from entitycelery.health.heartbeat import heartbeat_file
from entitycelery.placement import WORKER_VARIABLE
from entitycelery.settings import Settings
from entitycelery.worker.consumption import Consumption
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.drain_task import Dispatcher, DrainTask
from entitycelery.worker.link import WorkerEnd
from entitycelery.worker.logs import set_up_worker_log
from entitycelery.worker.process import RunnerProcess

log = logging.getLogger("entitycelery.worker")

_LOOK_EVERY_S = 0.25
_LOOK_WITHOUT_LOOP_EVERY_S = 0.05
_KILL_AFTER_S = 1.0


class RunnerStep(bootsteps.StartStopStep):
    """Decides whether this worker hosts entities; starts the runner process before the pool forks."""

    label = "Entities"

    def __init__(
        self,
        w: Any,
        without_entities: bool = False,
        shard_groups: str | None = None,
        runner_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        w.entity_runner = None
        w.entity_dispatcher = None
        w.entity_consumption = None
        self._why_not = _why_not(w, without_entities, shard_groups)
        self._overrides = {"shard_groups": shard_groups, "runner_weight": runner_weight}
        super().__init__(w, **kwargs)

    def create(self, w: Any) -> None:
        if self._why_not:
            return
        entities = entities_of(w.app)
        try:
            entities.override(**self._overrides)
            _check_loops(entities)
            _check_store(entities)
        except EntityError as exc:
            # Nothing has started yet; a sentence serves better than a traceback.
            raise SystemExit(f"entitycelery: {exc}") from exc
        settings = entities.settings
        set_up_worker_log(settings)
        w.app.register_task(DrainTask())
        # In the environment, so that every process of the worker has it, however the pool starts them.
        token = os.environ[WORKER_VARIABLE] = os.urandom(4).hex()
        _first_beat(settings, token)
        w.entity_dispatcher = Dispatcher(
            known=settings.served_shards,
            slots=lambda: _slots(w, settings),
            may_end_process=_is_prefork(w),
            refuse_for_s=settings.deploy_window_s,
        )
        w.entity_consumption = Consumption(w.entity_dispatcher, settings)
        w.entity_runner = RunnerProcess(entities, worker=token, address=w.hostname, pool=_pool_name(w))
        w.entity_runner.on_start = w.entity_consumption.follow
        w.entity_runner.start()
        w.entity_consumption.follow(w.entity_runner.link)

    def start(self, w: Any) -> None:
        # Green threads share the main thread: one that is ended within the shield would leave it open for ever.
        if w.entity_dispatcher is not None and not getattr(w.pool_cls, "is_green", False):
            w.entity_dispatcher.shield.install()
        if not getattr(w, "quiet", False):
            print("\n".join(self._banner(w)), file=sys.__stdout__, flush=True)

    def close(self, w: Any) -> None:
        # Not in stop(): whether the pool, which waits for its turns there, comes before this step or after is chance.
        if w.entity_runner is None:
            return
        settings = entities_of(w.app).settings
        status = w.entity_consumption.leave(tell=settings.preemptive_shutdown)
        if settings.preemptive_shutdown:
            w.entity_runner.leave(status)
        # A thread, since nothing else runs while the worker waits for its pool; nothing is forked any more.
        giving_up = threading.Timer(settings.drain_timeout_s, _give_up, (w,))
        giving_up.daemon = True
        giving_up.start()

    def _banner(self, w: Any) -> list[str]:
        if self._why_not:
            return [f"[entities] none hosted: {self._why_not}", ""]
        entities = entities_of(w.app)
        settings = entities.settings
        types = ", ".join(kind.name for kind in entities.types) or "none registered"
        return [
            f"[entities] cluster {settings.cluster}, groups {', '.join(settings.shard_groups)}, "
            f"{settings.shards_per_group} shards each",
            f"  store:  {entities.database}",
            f"  broker: {w.app.connection_for_read().as_uri()}",
            f"  types:  {types}",
            *([f"  loops:  {', '.join(loop.name for loop in entities.loops)}"] if entities.loops else []),
            "",
        ]


class ShardQueuesStep(bootsteps.StartStopStep):
    """Consumes the shards' queues; runs again at every broker connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._watch: Any = None
        self._reading: WorkerEnd | None = None
        self._is_first = True
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        runner: RunnerProcess | None = c.controller.entity_runner
        if runner is None:
            return
        settings = entities_of(c.app).settings
        if self._is_first:
            self._is_first = False
            _warn_of_server(entities_of(c.app), drains=_slots(c.controller, settings))
        # Celery's loop begins to consume: before it does, a message would find no callback.
        self._watch = c.timer.call_repeatedly(_look_every_s(c), self._look, (c, runner))
        self._read(c, runner)
        consumption: Consumption = c.controller.entity_consumption
        consumption.connect(c, lambda call: _on_loop(c, call))

    def stop(self, c: Any) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._unread(c)
        if c.controller.entity_runner is not None:
            c.controller.entity_consumption.disconnect()

    def shutdown(self, c: Any) -> None:
        """The pool's turns are over."""
        self.stop(c)
        runner: RunnerProcess | None = c.controller.entity_runner
        if runner is not None:
            runner.leave(c.controller.entity_consumption.leave())
            runner.stop()

    def _look(self, c: Any, runner: RunnerProcess) -> None:
        runner.ensure_alive()
        c.controller.entity_consumption.look()
        if runner.link is not self._reading:
            self._read(c, runner)

    def _read(self, c: Any, runner: RunnerProcess) -> None:
        """Have the loop look as soon as the runner process says something, where there is a loop that can."""
        self._unread(c)
        self._reading = runner.link
        if c.hub is not None:
            c.hub.add_reader(self._reading, self._on_readable, c)

    def _unread(self, c: Any) -> None:
        if c.hub is not None and self._reading is not None and not self._reading.has_ended:
            c.hub.remove_reader(self._reading)
        self._reading = None

    def _on_readable(self, c: Any) -> None:
        c.controller.entity_consumption.look()
        if self._reading is not None and self._reading.has_ended:
            # Nothing more comes from it, and it would be readable for ever.
            c.hub.remove_reader(self._reading)


def _on_loop(c: Any, call: Callable[[], None]) -> None:
    if c.hub is None:
        c.call_soon(call)
    else:
        # Not call_soon: on the loop's own thread that waits for the next event.
        c.timer.call_after(0.001, call)


def _look_every_s(c: Any) -> float:
    return _LOOK_EVERY_S if c.hub is not None else _LOOK_WITHOUT_LOOP_EVERY_S


def _give_up(w: Any) -> None:
    """The turns that still run have had their time: others run them again."""
    if _is_prefork(w):
        # A process that waits for an answer of the database does not hear of any other signal before it comes.
        kill = threading.Timer(_KILL_AFTER_S, w.entity_dispatcher.give_up, (w.pool, signal.SIGKILL))
        kill.daemon = True
        kill.start()
    if not w.entity_dispatcher.give_up(w.pool) and not _runs_tasks():
        log.warning("turns run that this pool cannot end: the worker ends with them, and they run again elsewhere")
        logging.shutdown()
        os._exit(os.EX_TEMPFAIL)


def _runs_tasks() -> bool:
    return any(not isinstance(request, DrainRequest) for request in state.active_requests)


def _pool_name(w: Any) -> str:
    return w.pool_cls if isinstance(w.pool_cls, str) else str(w.pool_cls.__module__.rpartition(".")[2])


def _why_not(w: Any, without_entities: bool, shard_groups: str | None) -> str:
    """The reason why this worker hosts no entities, or nothing."""
    if without_entities:
        return "--without-entities"
    if shard_groups is None and _selects_queues(w):
        return "-Q without --shard-groups"
    return ""


def _selects_queues(w: Any) -> bool:
    context = click.get_current_context(silent=True)
    if context is not None and "queues" in context.params:
        return bool(context.params["queues"])
    # Without a command line, as in celery.contrib.testing: what was selected is kept apart, else there is nothing.
    return w.app.amqp.queues._consume_from is not None


def _most_processes(w: Any) -> int:
    # The pool is made after our step. An autoscaled one grows with what is asked of it, so ask for all it may give.
    autoscaler = getattr(w, "autoscaler", None)
    if autoscaler:
        most: int = autoscaler.max_concurrency
    elif w.pool.is_green:
        # Before Celery 5.7 num_processes was how many greenlets are busy.
        most = w.pool.limit
    else:
        most = w.pool.num_processes
    return most


def _slots(w: Any, settings: Settings) -> int:
    return max(1, min(_most_processes(w), settings.connections))


def _is_prefork(w: Any) -> bool:
    pool = w.pool_cls if isinstance(w.pool_cls, str) else w.pool_cls.__module__
    return pool == "processes" or pool.startswith(("prefork", "celery.concurrency.prefork"))


def _warn_of_server(entities: EntityCelery, drains: int) -> None:
    try:
        concerns = entities.store.concerns(drains, entities.settings.batch_size)
    except StoreUnavailable as exc:
        concerns = [f"the settings of the database server could not be read: {exc}"]
    for sentence in concerns:
        log.warning("%s", sentence)


def _first_beat(settings: Settings, token: str) -> None:
    heartbeat = heartbeat_file(settings, worker=token, pid=os.getpid())
    if heartbeat is None:
        return
    try:
        heartbeat.beat()
    except ConfigurationError as exc:
        raise SystemExit(f"entitycelery: {exc}") from exc


def _check_loops(entities: EntityCelery) -> None:
    lost = next((loop for loop in entities.loops if loop.spec.module == "__main__"), None)
    if lost is not None:
        raise ConfigurationError(
            f"the loop {lost.name} is defined in the program that was started, which no other process can import: "
            "move it to a module, or start the worker with celery -A"
        )


def _check_store(entities: EntityCelery) -> None:
    entities.app.loader.import_default_modules()
    if entities.migrate_if_allowed():
        entities.make_views()
    entities.store.schema.verify()
    entities.store_schedules()
