"""`demo`: kill a worker in mid-load, and count from the store what became of every transfer."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import click

from .command import Command
from .demo_run import Outcome, run
from .exits import FAILED, OK, CommandFailed
from .output import print_aligned, print_record
from .session import Session, pass_session

_LINE_EVERY_S = 1.0


class Progress:
    """A line that lives on a terminal; elsewhere a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._line_is_open = False
        self._next_s = 0.0

    def say(self, sentence: str) -> None:
        """Print a line of its own."""
        self.finish()
        click.echo(sentence, file=self._stream)

    def show(self, word: str, done: int, of: int, took_s: float) -> None:
        """Show how far it is."""
        text = f"{word} {done:,} of {of:,}, {done / max(took_s, 0.001):,.0f}/s"
        if self._live:
            click.echo(f"\r\x1b[K{text}", file=self._stream, nl=False)
            self._line_is_open = True
        elif took_s and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LINE_EVERY_S
            click.echo(text, file=self._stream)

    def finish(self) -> None:
        """End the live line."""
        if self._line_is_open:
            click.echo(file=self._stream)
            self._line_is_open = False


@click.command("demo", cls=Command)
@click.option("--database-url", metavar="URL", help="A PostgreSQL or SQLite store; default: a new SQLite file.")
@click.option("--broker", metavar="URL", help="Celery's broker; default: a folder.")
@click.option("--json", "as_json", is_flag=True, help="The same as --output json.")
@pass_session
@click.pass_context
def demo_command(
    ctx: click.Context, session: Session, /, database_url: str | None, broker: str | None, as_json: bool
) -> None:
    """Kill a worker under load, and count.

    Starts two real workers, sends 5,000 transfers between 200 accounts, kills one worker with kill -9 in mid-load and
    starts another. Then reads each account's ledger from the store. Exit code 0 only if every transfer was applied
    exactly once on both sides, in the order in which its sender sent it, and the money is all there.
    """
    output = "json" if as_json else session.output
    progress = Progress(sys.stdout if output == "text" else sys.stderr)
    began_s = time.monotonic()
    try:
        outcome = run(database_url or session.database_url, broker, say=progress.say, show=progress.show)
    except CommandFailed as exc:
        progress.finish()
        click.echo(exc.details, err=True)
        raise CommandFailed(exc.code, str(exc)) from exc
    finally:
        progress.finish()
    took_s = time.monotonic() - began_s
    if output == "text":
        click.echo()
        print_aligned(table(outcome, took_s))
    else:
        print_record(output, document(outcome, took_s))
    if not outcome.verdict.ok:
        click.echo(outcome.log_tails, err=True)
    ctx.exit(OK if outcome.verdict.ok else FAILED)


def table(outcome: Outcome, took_s: float) -> list[list[str]]:
    """The outcome for people."""
    verdict = outcome.verdict
    rows = {
        "sent": f"{verdict.sent:,}",
        "applied": f"{verdict.applied:,}",
        "lost": f"{verdict.lost:,}",
        "doubled": f"{verdict.doubled:,}",
        "strange entries": f"{verdict.strange:,}",
        "order kept": "yes" if not verdict.out_of_order else f"no, {verdict.out_of_order} times",
        "money before": f"{verdict.money_before:,}",
        "money after": f"{verdict.money_after:,}",
        "killed": f"{outcome.killed} (pid {outcome.killed_pid}) after {outcome.killed_at:,} transfers",
        "messages/s": f"{outcome.messages_per_s:,.0f}",
        "ask p50": f"{outcome.ask_p50_ms:.1f} ms",
        "ask p99": f"{outcome.ask_p99_ms:.1f} ms",
        "took": f"{took_s:.1f} s",
        "verdict": "exactly once" if verdict.ok else "FAILED",
    }
    return [[name, text] for name, text in rows.items()]


def document(outcome: Outcome, took_s: float) -> dict[str, object]:
    """The outcome for scripts."""
    verdict = outcome.verdict
    return {
        "ok": verdict.ok,
        "sent": verdict.sent,
        "applied": verdict.applied,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "strange": verdict.strange,
        "order_kept": not verdict.out_of_order,
        "money_before": verdict.money_before,
        "money_after": verdict.money_after,
        "unbalanced": verdict.unbalanced,
        "killed_worker": {"name": outcome.killed, "pid": outcome.killed_pid, "after": outcome.killed_at},
        "messages_per_s": round(outcome.messages_per_s, 1),
        "ask_p50_ms": round(outcome.ask_p50_ms, 2),
        "ask_p99_ms": round(outcome.ask_p99_ms, 2),
        "took_s": round(took_s, 2),
        "store": outcome.store,
        "broker": outcome.broker,
    }
