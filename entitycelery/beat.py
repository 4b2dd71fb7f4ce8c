"""`celery beat -S entity`: Celery's own beat as one more scheduler of the cluster's schedules.

The schedules are rows of the store, so any number of beats and the runners may drive them together: each tick fires
once. What `beat_schedule` says is stored when a beat starts.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.beat import Scheduler
from celery.schedules import crontab
from celery.utils.log import get_logger

from entitycelery.app import EntityCelery, entities_of
from entitycelery.exceptions import StoreUnavailable
from entitycelery.scheduler.ticker import Ticker

log = get_logger(__name__)

DEFAULT_MAX_INTERVAL_S = 5.0
_PAUSE_AFTER_FAILURE_S = 1.0
_CLEAN_UP_EXPIRES_S = 12 * 3600


class EntityScheduler(Scheduler):
    """Beat's scheduler class, by the entry point `entity`.

    `--max-interval` and `beat_max_loop_interval` bound how long it sleeps, 5 s by default: so soon it notices what
    others have changed. `beat_sync_every` and `beat_schedule_filename` have no meaning: nothing is kept here.
    """

    def __init__(
        self, app: Any, schedule: Any = None, max_interval: Any = None, lazy: bool = False, **kwargs: Any
    ) -> None:
        self._ticker: Ticker | None = None
        self._entities: EntityCelery | None = None
        super().__init__(app, schedule=schedule, max_interval=max_interval, lazy=lazy, **kwargs)
        self.max_interval: Any = max_interval or app.conf.beat_max_loop_interval or DEFAULT_MAX_INTERVAL_S

    def setup_schedule(self) -> None:
        """Store what code and `beat_schedule` say. Called once beat runs, and not for its banner."""
        entities = self._entities = entities_of(self.app)
        self.app.loader.import_default_modules()
        entities.beat_schedule({**self._clean_up(), **self.app.conf.beat_schedule})
        names, _ = entities.store_schedules()
        log.info("beat: %d schedules of the code are stored in %s", len(names), entities.database)
        store, bell = entities.store, entities.host.bell
        self._ticker = Ticker(
            store.timetable,
            entities.settings.cluster,
            shards_per_group=lambda: store.shards_per_group,
            stored=lambda shards: bell.mail_stored(shards),
            fired_at=logging.INFO,
        )
        self._ticker.compare()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Fire what is due; how many seconds to sleep."""
        if self._ticker is None:
            self.setup_schedule()
        assert self._ticker is not None
        try:
            next_s = self._ticker.run()
        except StoreUnavailable as exc:
            log.error("beat: %s", exc)
            return float(min(self.max_interval, _PAUSE_AFTER_FAILURE_S))
        return float(self.max_interval if next_s is None else min(self.max_interval, next_s))

    def _clean_up(self) -> dict[str, Any]:
        """The entry that beat adds by itself where the result backend keeps what has expired."""
        conf = self.app.conf
        if not conf.result_expires or self.app.backend.supports_autoexpire:
            return {}
        task, when = "celery.backend_cleanup", crontab("0", "4", "*")
        return {task: {"task": task, "schedule": when, "options": {"expires": _CLEAN_UP_EXPIRES_S}}}

    def sync(self) -> None:
        """Nothing: each tick is stored as it fires."""

    def close(self) -> None:
        if self._entities is not None:
            self._entities.close()

    @property
    def info(self) -> str:
        return "    . store -> the schedules of entitycelery\n"
