"""One run of the demo: start workers, send transfers, pull a plug, wait, measure, and give everything back."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from entitycelery.address import ShardId, queue_name

from .demo_check import Ledger, Transfer, Verdict, check, plan
from .demo_workers import Worker, Workers
from .exits import FAILED, CommandFailed

TRANSFERS = 5_000
ACCOUNTS = 200
SENDERS = 4
KILL_AFTER = 0.4

_BATCH = 50
_ASKS = 100
_APPLIED_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.1
_MODULE = f"{__package__}.demo_app"
_LEDGER: msgspec.json.Decoder[Ledger] = msgspec.json.Decoder(Ledger)

Say = Callable[[str], None]
Show = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Outcome:
    """What a run found and measured."""

    verdict: Verdict
    killed: str
    killed_pid: int
    killed_at: int
    messages_per_s: float
    ask_p50_ms: float
    ask_p99_ms: float
    store: str
    broker: str
    log_tails: str


def run(database_url: str | None, broker: str | None, *, say: Say, show: Show) -> Outcome:
    """Run the demo on the embedded store, or on the servers given; leaves nothing behind.

    Raises:
        CommandFailed: It could not be carried to its end: what is missing, and the workers' last words as details.
    """
    with (
        _termination_as_exception(),
        tempfile.TemporaryDirectory(prefix="entitycelery-demo-", ignore_cleanup_errors=True) as folder,
    ):
        environment = _environment(Path(folder), database_url, broker)
        with _environ(environment), _demo_app() as app:
            workers = Workers(_MODULE, Path(folder), environment)
            try:
                return _Run(app, workers, say, show).carry_out()
            except CommandFailed as exc:
                raise CommandFailed(exc.code, str(exc), workers.log_tails()) from exc
            finally:
                with _uninterrupted():
                    workers.stop()


@dataclass
class _Run:
    """The acts of the demo, in order."""

    app: Any
    workers: Workers
    say: Say
    show: Show
    accounts: list[str] = field(default_factory=lambda: [f"account-{n:03}" for n in range(ACCOUNTS)])
    errors: list[BaseException] = field(default_factory=list)

    def carry_out(self) -> Outcome:
        entities = self.app.entities
        transfers = plan(TRANSFERS, self.accounts, SENDERS, random.Random())
        self.say(f"store {entities.database}, broker {self._broker()}")
        self.say("starting two workers")
        self.workers.start()
        self.workers.start()
        self.workers.await_ready()
        self.say(f"sending {TRANSFERS:,} transfers between {ACCOUNTS} accounts, from {SENDERS} senders")
        killed, killed_at, took_s = self._load(transfers)
        self.workers.await_ready()
        p50_ms, p99_ms = self._ask()
        verdict = check(transfers, self._ledgers(), self.accounts)
        return Outcome(
            verdict=verdict,
            killed=killed.name,
            killed_pid=killed.pid,
            killed_at=killed_at,
            messages_per_s=2 * verdict.applied / took_s,
            ask_p50_ms=p50_ms,
            ask_p99_ms=p99_ms,
            store=entities.database,
            broker=self._broker(),
            log_tails=self.workers.log_tails(),
        )

    def _load(self, transfers: Sequence[Transfer]) -> tuple[Worker, int, float]:
        """Send all, kill a worker on the way, and wait until all are applied."""
        began_s = time.monotonic()
        senders = [
            threading.Thread(
                target=self._send, args=([t for t in transfers if t.sender == f"sender-{n}"],), daemon=True
            )
            for n in range(SENDERS)
        ]
        for sender in senders:
            sender.start()
        killed: tuple[Worker, int] | None = None
        while True:
            applied = self._applied()
            took_s = time.monotonic() - began_s
            self.show("applied", applied, TRANSFERS, took_s)
            if killed is None and applied >= KILL_AFTER * TRANSFERS:
                killed = self.workers.kill_one(), applied
                self.say(f"kill -9 of {killed[0].name} and all its processes; starting another")
                self.workers.start()
            sending = any(sender.is_alive() for sender in senders)
            if killed and not sending and applied == TRANSFERS and not self.app.entities.messages(limit=1):
                return *killed, took_s
            self._check_progress(transfers, took_s)
            time.sleep(_LOOK_EVERY_S)

    def _send(self, transfers: Sequence[Transfer]) -> None:
        ref = self.app.Account.ref
        try:
            for start in range(0, len(transfers), _BATCH):
                self.app.entities.send_many(
                    [
                        ref(t.source).transfer.prepare(t.number, t.amount, t.target, t.sender, t.sequence)
                        for t in transfers[start : start + _BATCH]
                    ]
                )
        except Exception as exc:  # noqa: BLE001 - a thread's exception is seen by nobody else
            self.errors.append(exc)

    def _check_progress(self, transfers: Sequence[Transfer], took_s: float) -> None:
        if self.errors:
            raise CommandFailed(FAILED, f"a sender failed: {self.errors[0]!r}")
        self.workers.check_alive()
        if took_s < _APPLIED_WITHIN_S:
            return
        verdict = check(transfers, self._ledgers(), self.accounts)
        numbers = ", ".join(map(str, verdict.missing[:10]))
        raise CommandFailed(
            FAILED,
            f"after {_APPLIED_WITHIN_S:g} s {verdict.applied} of {verdict.sent} transfers are applied, "
            f"{verdict.lost} are missing ({numbers or 'none'}), {verdict.doubled} are doubled",
        )

    def _ask(self) -> tuple[float, float]:
        """p50 and p99 of an ask on the idle system, in milliseconds."""
        self.say(f"asking {_ASKS} times on the idle system")
        took_ms = []
        for account in random.choices(self.accounts, k=_ASKS + 1):
            began_s = time.perf_counter()
            self.app.Account.ref(account).report_balance.ask()
            took_ms.append(1000 * (time.perf_counter() - began_s))
        # The first one connected to the broker.
        percentiles = statistics.quantiles(took_ms[1:], n=100, method="inclusive")
        return percentiles[49], percentiles[98]

    def _applied(self) -> int:
        return len({entry.number for ledger in self._ledgers().values() for entry in ledger.credits})

    def _ledgers(self) -> dict[str, Ledger]:
        """The accounts as the store has them."""
        rows = self.app.entities.store.states("Account", None, 2 * ACCOUNTS)
        return {address.id: _LEDGER.decode(stored.state) for address, stored in rows if stored.state is not None}

    def _broker(self) -> str:
        return str(self.app.app.connection_for_write().as_uri())


@contextlib.contextmanager
def _demo_app() -> Iterator[Any]:
    """The demo's app in this process, with its schema; what the run made on servers is removed at the end."""
    # It reads the environment when it is imported, so not before that is set.
    app = importlib.import_module(_MODULE)
    entities = app.entities
    try:
        entities.store.upgrade()
        yield app
    finally:
        with _uninterrupted():
            _remove_queues(app)
            with contextlib.suppress(Exception):
                entities.store.drop()
            entities.close()
            sys.modules.pop(_MODULE, None)


def _remove_queues(app: Any) -> None:
    settings = app.entities.settings
    shards = [ShardId(group, n) for group in settings.shard_groups for n in range(settings.shards_per_group)]
    names = [app.app.conf.task_default_queue, *(queue_name(settings.cluster, shard) for shard in shards)]
    # A broker that has gone takes its queues with it, or forgets them in a day.
    with contextlib.suppress(Exception), app.app.connection_for_write() as connection:
        channel = connection.default_channel
        for name in names:
            channel.queue_delete(name)


def _environment(folder: Path, database_url: str | None, broker: str | None) -> dict[str, str]:
    """The environment of this run: whatever configures the user's own apps is left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENTITY_", "CELERY_"))}
    package = sys.modules[str(__package__).partition(".")[0]]
    home = str(Path(str(package.__file__)).parent.parent)
    if database_url is not None and broker is None and not database_url.startswith("sqlite"):
        broker = f"folder://{folder / 'broker'}"
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, [home, kept.get("PYTHONPATH")])),
        "ENTITY_DATABASE_URL": database_url or f"sqlite:///{folder / 'store.db'}",
        "ENTITY_CLUSTER": f"demo_{uuid4().hex[:12]}",
        **({"ENTITY_DEMO_BROKER": broker} if broker else {}),
    }


@contextlib.contextmanager
def _environ(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on Ctrl-C: with everything given back."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    with _handlers({signal.SIGTERM: leave, signal.SIGHUP: leave}):
        yield


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    ignored = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)
    with _handlers(ignored):
        yield


@contextlib.contextmanager
def _handlers(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
