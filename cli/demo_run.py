"""One run of the demo: start workers, send transfers, pull a plug, wait, measure, and read the ledgers."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .demo_check import Ledger, Transfer, Verdict, check, plan
from .demo_stage import MODULE, demo_app, environment_for, environment_set, termination_as_exception, uninterrupted
from .demo_workers import Worker, Workers
from .exits import FAILED, CommandFailed

TRANSFERS = 5_000
ACCOUNTS = 200
SENDERS = 4
KILL_AFTER = 0.4

_BATCH = 50
_ASKS = 100
_STANDS_STILL_S = 30.0
_SENDERS_END_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.1
_LEDGER: msgspec.json.Decoder[Ledger] = msgspec.json.Decoder(Ledger)

Say = Callable[[str], None]


class Progress(NamedTuple):
    """How far the load is, in transfers, by what the store holds."""

    of: int
    sent: int = 0
    paid: int = 0
    received: int = 0
    took_s: float = 0.0

    @property
    def handled(self) -> int:
        """Messages handled: two for each transfer."""
        return self.paid + self.received


class Killed(NamedTuple):
    """The worker whose plug was pulled."""

    name: str
    pid: int
    processes: int
    handled: int
    """How many messages were handled by then."""


@dataclass(frozen=True)
class Outcome:
    """What a run found and measured."""

    verdict: Verdict
    killed: Killed
    messages_per_s: float
    ask_p50_ms: float
    ask_p99_ms: float
    store: str
    broker: str
    log_tails: str


def run(
    database_url: str | None, broker: str | None, transfers: int, *, say: Say, show: Callable[[Progress], None]
) -> Outcome:
    """Run the demo on the embedded store, or on the servers given; leaves nothing behind.

    Raises:
        CommandFailed: It could not be carried to its end: what is missing, and the workers' last words as details.
    """
    with (
        termination_as_exception(),
        tempfile.TemporaryDirectory(prefix="entitycelery-demo-", ignore_cleanup_errors=True) as folder,
    ):
        environment = environment_for(Path(folder), database_url, broker)
        with environment_set(environment), demo_app() as app:
            workers = Workers(MODULE, Path(folder), environment)
            senders = Senders(app)
            try:
                return _Run(app, workers, senders, say, show).carry_out(transfers)
            except CommandFailed as exc:
                raise CommandFailed(exc.code, str(exc), workers.log_tails()) from exc
            finally:
                with uninterrupted():
                    workers.stop()
                    senders.stop()


class Senders:
    """Threads that send the transfers, each its own in order."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._errors: list[Exception] = []
        self.sent = 0

    def start(self, transfers: Sequence[Transfer]) -> None:
        """Start one thread for each sender."""
        for name in dict.fromkeys(transfer.sender for transfer in transfers):
            theirs = [transfer for transfer in transfers if transfer.sender == name]
            self._threads.append(threading.Thread(target=self._send, args=(theirs,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def are_sending(self) -> bool:
        """Whether some are still at it.

        Raises:
            CommandFailed: One of them failed.
        """
        if self._errors:
            raise CommandFailed(FAILED, f"a sender failed: {self._errors[0]}")
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Let them finish what they are storing, and no more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_SENDERS_END_WITHIN_S)

    def _send(self, transfers: Sequence[Transfer]) -> None:
        ref = self._app.Account.ref
        try:
            for start in range(0, len(transfers), _BATCH):
                if self._stopping.is_set():
                    return
                batch = transfers[start : start + _BATCH]
                self._app.entities.send_many(
                    [ref(t.source).transfer.prepare(t.number, t.amount, t.target, t.sender, t.sequence) for t in batch]
                )
                with self._mutex:
                    self.sent += len(batch)
        except Exception as exc:  # noqa: BLE001 - a thread's exception is seen by nobody else
            self._errors.append(exc)


@dataclass
class _Run:
    """The acts of the demo, in order."""

    app: Any
    workers: Workers
    senders: Senders
    say: Say
    show: Callable[[Progress], None]

    def carry_out(self, count: int) -> Outcome:
        accounts = [f"account-{n:03}" for n in range(ACCOUNTS)]
        transfers = plan(count, accounts, SENDERS, random.Random())
        self.say(f"store   {self.app.entities.database}")
        self.say(f"broker  {self._broker()}")
        self.say("")
        self._start_two()
        self.say(f"Sending {count:,} transfers between {ACCOUNTS} accounts, from {SENDERS} senders at once.")
        killed, took_s = self._load(transfers)
        self.workers.await_ready()
        self.say(f"All is handled. Asking for a balance {_ASKS} times, one by one.")
        p50_ms, p99_ms = self._ask(accounts)
        self.say("Reading the ledgers of all accounts from the store.")
        verdict = check(transfers, self._ledgers(), accounts)
        return Outcome(
            verdict=verdict,
            killed=killed,
            messages_per_s=2 * verdict.applied / took_s,
            ask_p50_ms=p50_ms,
            ask_p99_ms=p99_ms,
            store=self.app.entities.database,
            broker=self._broker(),
            log_tails=self.workers.log_tails(),
        )

    def _start_two(self) -> None:
        began_s = time.monotonic()
        names = [f"{worker.name} (pid {worker.pid})" for worker in (self.workers.start(), self.workers.start())]
        self.say(f"Starting two workers: {' and '.join(names)}.")
        self.workers.await_ready()
        self.say(f"Both are ready after {time.monotonic() - began_s:.1f} s.")

    def _load(self, transfers: Sequence[Transfer]) -> tuple[Killed, float]:
        """Send all, kill a worker on the way, and wait until nothing is pending; the killed, and how long it took."""
        began_s = time.monotonic()
        self.senders.start(transfers)
        killed: Killed | None = None
        before, moved_at_s = Progress(len(transfers)), began_s
        while True:
            # In this order: what is sent after the first look is seen by the second.
            is_over = not self.senders.are_sending and not self.app.entities.messages(limit=1)
            now_s = time.monotonic()
            progress = self._progress(len(transfers), now_s - began_s)
            self.show(progress)
            if progress.handled != before.handled:
                before, moved_at_s = progress, now_s
            if killed is None and progress.handled >= KILL_AFTER * 2 * len(transfers):
                killed = self._pull_the_plug(progress)
            if is_over:
                if killed is None:
                    raise CommandFailed(FAILED, _too_early(progress))
                return killed, now_s - began_s
            if now_s - moved_at_s >= _STANDS_STILL_S:
                raise CommandFailed(FAILED, f"for {_STANDS_STILL_S:g} s nothing was handled: {_seen(progress)}")
            self.workers.check_alive()
            time.sleep(_LOOK_EVERY_S)

    def _pull_the_plug(self, progress: Progress) -> Killed:
        worker, processes = self.workers.kill_one()
        another: Worker = self.workers.start()
        self.say(f"kill -9 {worker.pid}: {worker.name} and its whole tree, {processes} processes, are gone.")
        self.say(f"Starting {another.name} (pid {another.pid}) in its place.")
        return Killed(worker.name, worker.pid, processes, progress.handled)

    def _progress(self, of: int, took_s: float) -> Progress:
        ledgers = self._ledgers().values()
        # Sets: an entry that is there twice is no progress.
        paid = len({entry.number for ledger in ledgers for entry in ledger.debits})
        received = len({entry.number for ledger in ledgers for entry in ledger.credits})
        return Progress(of, self.senders.sent, paid, received, took_s)

    def _ask(self, accounts: Sequence[str]) -> tuple[float, float]:
        """p50 and p99 of an ask on the idle system, in milliseconds."""
        took_ms = []
        for account in random.choices(accounts, k=_ASKS + 1):
            began_s = time.perf_counter()
            self.app.Account.ref(account).report_balance.ask()
            took_ms.append(1000 * (time.perf_counter() - began_s))
        # The first one connected to the broker.
        percentiles = statistics.quantiles(took_ms[1:], n=100, method="inclusive")
        return percentiles[49], percentiles[98]

    def _ledgers(self) -> dict[str, Ledger]:
        """The accounts as the store has them."""
        rows = self.app.entities.store.states("Account", None, 2 * ACCOUNTS)
        return {address.id: _LEDGER.decode(stored.state) for address, stored in rows if stored.state is not None}

    def _broker(self) -> str:
        return str(self.app.app.connection_for_write().as_uri())


def _seen(progress: Progress) -> str:
    return f"{progress.sent:,} of {progress.of:,} sent, {progress.paid:,} paid, {progress.received:,} received"


def _too_early(progress: Progress) -> str:
    return f"the load was over before a worker could be killed: {_seen(progress)}; send more with --transfers"
