"""A site: one store, a folder as its broker, workers and senders that can be made to die, and the app to look in."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock
from uuid import uuid4

from entitycelery.transports.folder import configure
from tests.celery.workers import Worker
from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database
from tests.storage.support import change, query
from tests.waiting import eventually

APP = "tests.crashes.apps.ledger"
REFRESH_S = 0.2
# A slow machine, a pool that starts another process: what is not the library's.
ALLOWANCE_S = 15.0

_FILE = Path(__file__).parent / "apps" / "ledger.py"
_PAID = "CREATE TABLE paid (ledger TEXT NOT NULL, sender TEXT NOT NULL, number INTEGER NOT NULL)"
_CONF: dict[str, Any] = {
    "entity_auto_migrate": True,
    "entity_refresh_interval_s": REFRESH_S,
    "entity_shards_per_group": 2,
    "worker_lost_wait": 0.5,
}
_LOCKS = {
    "sqlite": "SELECT kind, key, process FROM {lock}",
    "postgresql": "SELECT classid, objid, pid FROM pg_locks WHERE locktype = 'advisory' AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) AND pid NOT IN "
    # A living runner's leases, and its watch over another, are there to stay.
    "(SELECT pid FROM pg_stat_activity WHERE application_name ~ '^entitycelery .* (lease|watch) ')",
}

_serial = itertools.count()


class Death(NamedTuple):
    """Who died where and when, by the clock of this machine."""

    at_s: float
    pid: int
    point: str


class Site:
    """What belongs to one site; other names are those of its app's module: `site.Ledger`, `site.entities`."""

    def __init__(self, folder: Path, conf: Mapping[str, Any]) -> None:
        self.folder = folder
        self.crashes = folder / "crashes"
        (self.crashes / "plan").mkdir(parents=True)
        self.workers: list[Worker] = []
        self._conf = dict(conf)
        self.module = self._client()
        self.store.schema.upgrade()
        change(self.store, _PAID)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    @property
    def store(self) -> Any:
        return self.module.entities.store

    def environment(self, *, mortal: bool = True, with_its_tree: bool = False) -> dict[str, str]:
        """What a process needs to be of this site, and if it is mortal to die when it is told to."""
        own = {"CRASH_CONFIG": json.dumps(self._conf), "CRASH_TREE": "1" if with_its_tree else "", "C_FORCE_ROOT": "1"}
        return {**own, "CRASH_POINTS": str(self.crashes)} if mortal else own

    def _client(self) -> ModuleType:
        name = f"ledger_{next(_serial)}"
        spec = importlib.util.spec_from_file_location(name, _FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with mock.patch.dict(os.environ, {"CRASH_CONFIG": json.dumps(self._conf)}):
            spec.loader.exec_module(module)
        return module

    def worker(self, *options: str, **how: bool) -> Worker:
        """A worker that is ready."""
        environment = self.environment(**how)
        chosen = options or ("-P", "prefork", "-c", "4")
        name = f"w{len(self.workers)}"
        worker = Worker(name, self.folder, "-l", "INFO", *chosen, module=APP, environment=environment)
        self.workers.append(worker)
        return worker.await_ready()

    # Dying

    def seen(self) -> list[str]:
        """The points that somebody came by, in the order of first times."""
        file = self.crashes / "seen"
        return list(dict.fromkeys(file.read_text().splitlines())) if file.exists() else []

    def plan(self, points: Sequence[str]) -> None:
        """Let one process die at each of these points, in this order."""
        for number, point in enumerate(points):
            # Made elsewhere and renamed, so that nobody reads half a name.
            draft = self.crashes / "draft"
            draft.write_text(point)
            draft.rename(self.crashes / "plan" / f"{number:02}")

    def planned(self) -> int:
        return len(list((self.crashes / "plan").iterdir()))

    def call_off(self) -> int:
        """Nobody need die any more; how many had not."""
        left = list((self.crashes / "plan").iterdir())
        for file in left:
            file.unlink(missing_ok=True)
        return len(left)

    def deaths(self) -> list[Death]:
        file = self.crashes / "deaths"
        if not file.exists():
            return []
        told = (line.split(" ", 2) for line in file.read_text().splitlines())
        return [Death(float(at_s), int(pid), point) for at_s, pid, point in told]

    # Looking

    def pending(self) -> int:
        return len(self.entities.messages(limit=1_000))

    def await_quiet(self) -> None:
        """Wait until no message is left."""
        eventually(lambda: self.pending() == 0, timeout_s=2 * REFRESH_S + ALLOWANCE_S, every_s=0.01)

    def locks(self) -> list[tuple[Any, ...]]:
        """Every claim and every attention that somebody seems to hold."""
        return query(self.store, _LOCKS[self.store.dialect.name])

    def notes(self) -> list[tuple[Any, ...]]:
        """What seems to be running."""
        return query(self.store, "SELECT token, message_ids FROM {in_flight}")

    def await_nothing_held(self) -> None:
        """Wait until no lock and no note is left."""
        left = {"locks": self.locks, "notes": self.notes}

        def nothing() -> bool:
            found = {what: look() for what, look in left.items()}
            assert not any(found.values()), found
            return True

        eventually(nothing, timeout_s=ALLOWANCE_S)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.module.entities.close()
        self.module.app.close()


@contextmanager
def open_site(services: Services, folder: Path, store: str, **conf: Any) -> Iterator[Site]:
    """A site on SQLite or PostgreSQL."""
    folder.mkdir(exist_ok=True)
    settings = {**_CONF, **conf, "entity_cluster": f"t_{uuid4().hex[:10]}", **configure({}, folder / "broker")}
    if store == "sqlite":
        with _closing(Site(folder, {**settings, "entity_database_url": f"sqlite:///{folder / 'store.db'}"})) as site:
            yield site
        return
    with (
        fresh_postgres_database(url_or_skip(services.postgres())) as url,
        _closing(Site(folder, {**settings, "entity_database_url": url})) as site,
    ):
        yield site


@contextmanager
def _closing(site: Site) -> Iterator[Site]:
    try:
        yield site
    finally:
        site.close()
