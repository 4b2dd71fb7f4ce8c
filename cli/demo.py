"""`demo`: kill a worker in mid-load, and count from the store what became of every transfer."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import click

from .command import Command
from .demo_check import Verdict
from .demo_run import TRANSFERS, Outcome, Progress, run
from .exits import FAILED, CommandFailed
from .output import print_record
from .session import Session, pass_session

_LINE_EVERY_S = 1.0
_FEWEST_TRANSFERS = 500
_SHOWN_NUMBERS = 10


class Stage:
    """Lines of text, and one line that lives on a terminal; elsewhere that is a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lives = stream.isatty()
        self._line_is_open = False
        self._next_at_s = 0.0

    def say(self, sentence: str) -> None:
        """Print a line of its own."""
        self.finish()
        click.echo(sentence, file=self._stream)

    def show(self, progress: Progress) -> None:
        """Show how far it is."""
        text = progress_line(progress)
        if self._lives:
            click.echo(f"\r\x1b[K{text}", file=self._stream, nl=False)
            self._line_is_open = True
        elif progress.took_s >= self._next_at_s:
            self._next_at_s = progress.took_s + _LINE_EVERY_S
            click.echo(text, file=self._stream)

    def finish(self) -> None:
        """End the live line."""
        if self._line_is_open:
            click.echo(file=self._stream)
            self._line_is_open = False


@click.command("demo", cls=Command)
@click.option("--database-url", metavar="URL", help="A PostgreSQL or SQLite store; default: a new SQLite file.")
@click.option("--broker", metavar="URL", help="Celery's broker; default: a folder.")
@click.option(
    "--transfers",
    type=click.IntRange(min=_FEWEST_TRANSFERS),
    default=TRANSFERS,
    show_default=True,
    help="How many to send.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --output json.")
@pass_session
def demo_command(
    session: Session,
    /,
    database_url: str | None,
    broker: str | None,
    transfers: int,
    as_json: bool,
) -> None:
    """Kill a worker under load, and count.

    Starts two real workers, sends 5,000 transfers between 200 accounts, kills one worker with kill -9 in mid-load and
    starts another. Then reads each account's ledger from the store. Exit code 0 only if every transfer was applied
    exactly once on both sides, in the order in which its sender sent it, and the money is all there.
    """
    output = "json" if as_json else session.output
    stage = Stage(sys.stdout if output == "text" else sys.stderr)
    began_s = time.monotonic()
    try:
        outcome = run(database_url or session.database_url, broker, transfers, say=stage.say, show=stage.show)
        stage.finish()
        took_s = time.monotonic() - began_s
        if output == "text":
            click.echo("\n" + "\n".join(table(outcome, took_s)) + "\n")
        else:
            print_record(output, document(outcome, took_s))
        if not outcome.verdict.ok:
            raise CommandFailed(FAILED, sentence(outcome.verdict), outcome.log_tails)
    except CommandFailed as exc:
        stage.finish()
        # The logs go with the run, so this is the moment to show them.
        click.echo(exc.details, err=True, nl=bool(exc.details))
        raise CommandFailed(exc.code, str(exc)) from exc
    finally:
        stage.finish()
    if output == "text":
        click.echo(sentence(outcome.verdict))


def progress_line(progress: Progress) -> str:
    """How far it is, in less than 80 columns."""
    per_s = progress.handled / max(progress.took_s, 0.001)
    return (
        f"  sent {progress.sent:>6,}  paid {progress.paid:>6,}  received {progress.received:>6,}  "
        f"of {progress.of:,}  {per_s:>6,.0f} messages/s"
    )


def table(outcome: Outcome, took_s: float) -> list[str]:
    """The outcome for people: name, figure, what it means."""
    verdict, killed = outcome.verdict, outcome.killed
    rows = [
        ("sent", f"{verdict.sent:,}", "transfers"),
        ("applied", f"{verdict.applied:,}", "exactly once on both sides"),
        ("lost", f"{verdict.lost:,}", "missing on one side or both"),
        ("doubled", f"{verdict.doubled:,}", "applied more than once"),
        ("strange", f"{verdict.strange:,}", "entries that nobody sent, or that were altered"),
        ("money before", f"{verdict.money_before:,}", ""),
        ("money after", f"{verdict.money_after:,}", "in all accounts"),
        ("order kept", "no" if verdict.out_of_order else "yes", _order(verdict)),
        ("killed", f"{killed.processes}", f"processes of {killed.name}, after {killed.handled:,} messages"),
        ("messages/s", f"{outcome.messages_per_s:,.0f}", "two for each transfer, the kill included"),
        ("ask p50", f"{outcome.ask_p50_ms:.1f}", "ms, on the idle system"),
        ("ask p99", f"{outcome.ask_p99_ms:.1f}", "ms"),
        ("took", f"{took_s:.1f}", "s in all"),
    ]
    names, figures = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"  {name:<{names}}  {figure:>{figures}}  {meaning}".rstrip() for name, figure, meaning in rows]


def sentence(verdict: Verdict) -> str:
    """The outcome in one sentence."""
    if verdict.ok:
        return "Every transfer was applied exactly once."
    wrong = {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "strange entries": verdict.strange,
        "out of order": verdict.out_of_order,
        "balances that do not add up": verdict.unbalanced,
        "money gained or lost": verdict.money_after - verdict.money_before,
    }
    said = ", ".join(f"{what}: {count:,}" for what, count in wrong.items() if count)
    numbers = ", ".join(map(str, verdict.missing[:_SHOWN_NUMBERS]))
    return f"FAILED. {said or 'nothing was sent'}" + (f" (lost: {numbers})" if numbers else "")


def _order(verdict: Verdict) -> str:
    return f"{verdict.out_of_order:,} places out of order" if verdict.out_of_order else "of each sender, in each ledger"


def document(outcome: Outcome, took_s: float) -> dict[str, object]:
    """The outcome for scripts."""
    verdict, killed = outcome.verdict, outcome.killed
    return {
        "ok": verdict.ok,
        "sent": verdict.sent,
        "applied": verdict.applied,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "strange": verdict.strange,
        "order_kept": not verdict.out_of_order,
        "out_of_order": verdict.out_of_order,
        "money_before": verdict.money_before,
        "money_after": verdict.money_after,
        "unbalanced": verdict.unbalanced,
        "killed": killed._asdict(),
        "messages_per_s": round(outcome.messages_per_s, 1),
        "ask_p50_ms": round(outcome.ask_p50_ms, 2),
        "ask_p99_ms": round(outcome.ask_p99_ms, 2),
        "took_s": round(took_s, 2),
        "store": outcome.store,
        "broker": outcome.broker,
    }
