"""The bootsteps: one of the worker, which lives as long as the process, and one of each broker connection."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click
from celery import bootsteps

from entitycelery.address import ShardId
from entitycelery.app import EntityCelery, entities_of
from entitycelery.exceptions import EntityError, StoreUnavailable
from entitycelery.settings import Settings
from entitycelery.transports.broker import shard_queue
from entitycelery.worker.drain_task import Dispatcher, DrainTask
from entitycelery.worker.logs import set_up_worker_log
from entitycelery.worker.process import RunnerProcess

log = logging.getLogger("entitycelery.worker")

_LEFT_OVER_WAKEUPS = 8


class RunnerStep(bootsteps.StartStopStep):
    """Decides whether this worker hosts entities; starts the runner process before the pool forks."""

    label = "Entities"

    def __init__(self, w: Any, without_entities: bool = False, shard_groups: str | None = None, **kwargs: Any) -> None:
        w.entity_runner = None
        w.entity_dispatcher = None
        self._why_not = _why_not(w, without_entities, shard_groups)
        self._shard_groups = shard_groups
        super().__init__(w, **kwargs)

    def create(self, w: Any) -> None:
        if self._why_not:
            return
        entities = entities_of(w.app)
        try:
            entities.override(shard_groups=self._shard_groups)
            _check_store(entities)
        except EntityError as exc:
            # Nothing has started yet; a sentence serves better than a traceback.
            raise SystemExit(f"entitycelery: {exc}") from exc
        set_up_worker_log(entities.settings)
        w.app.register_task(DrainTask())
        w.entity_dispatcher = Dispatcher(slots=lambda: _slots(w, entities.settings), may_end_process=_is_prefork(w))
        w.entity_runner = RunnerProcess(entities)
        w.entity_runner.start()

    def start(self, w: Any) -> None:
        if not getattr(w, "quiet", False):
            print("\n".join(self._banner(w)), file=sys.__stdout__, flush=True)

    def close(self, w: Any) -> None:
        # Not in stop(): whether the pool, which waits for its turns there, comes before this step or after is chance.
        if w.entity_runner is not None:
            w.entity_runner.stop()

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
            "",
        ]


class ShardQueuesStep(bootsteps.StartStopStep):
    """Consumes the shards' queues; runs again at every broker connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._watch: Any = None
        self._is_first = True
        super().__init__(c, **kwargs)

    def start(self, c: Any) -> None:
        runner: RunnerProcess | None = c.controller.entity_runner
        if runner is None:
            return
        settings = entities_of(c.app).settings
        shards = [ShardId(group, n) for group in settings.shard_groups for n in range(settings.shards_per_group)]
        for shard in shards:
            c.task_consumer.add_queue(shard_queue(settings.cluster, shard, settings.wakeup_expires_s))
        c.controller.entity_dispatcher.host(shards)
        if self._is_first:
            self._is_first = False
            self._clear_left_over(c)
            _warn_of_server(entities_of(c.app), drains=_slots(c.controller, settings))
        # Celery's loop begins to consume: before it does, a message would find no callback.
        self._watch = c.timer.call_repeatedly(settings.refresh_interval_s, runner.ensure_alive)

    def stop(self, c: Any) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def shutdown(self, c: Any) -> None:
        self.stop(c)

    def _clear_left_over(self, c: Any) -> None:
        # A night without a worker leaves stale wake-ups on brokers that do not expire them. The sweep rings anew.
        for queue in c.task_consumer.queues:
            if not queue.name.startswith("entity."):
                continue
            declared = queue.queue_declare(channel=c.task_consumer.channel)
            waiting = declared[1] if isinstance(declared, tuple) else 0
            if waiting > _LEFT_OVER_WAKEUPS:
                queue.purge() if queue.is_bound else queue(c.task_consumer.channel).purge()


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


def _check_store(entities: EntityCelery) -> None:
    if entities.migrate_if_allowed():
        entities.app.loader.import_default_modules()
        entities.make_views()
    entities.store.verify()
