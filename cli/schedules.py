"""`schedule list|show|add|pause|resume|trigger|backfill|next|remove|sync`: what fires when."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

import click

from entitycelery.scheduler.policy import Misfire
from entitycelery.stored_schedule import Overlap

from .command import Confirmation, Group, confirmed
from .lines import call_of
from .output import print_record, print_records
from .session import Session, pass_session
from .values import OperationCommand, arguments_of, duration
from .values import instant as to_instant
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import ScheduleStatus

COLUMNS = ("name", "status", "target", "when", "next_at", "last_tick", "lag_s", "fired", "skipped", "failure")


@click.group("schedule", cls=Group)
def schedule_command() -> None:
    """List schedules, add, pause and trigger them.

    All commands see the rows that the running workers and beats see.
    """


@schedule_command.command("list", cls=WatchedCommand)
@pass_session
def list_schedules(session: Session) -> None:
    """List all schedules by name; LAG is how long the next tick has been due."""
    print_records(session.output, [document(one) for one in session.store_entities().schedules()], COLUMNS)


@schedule_command.command("show")
@click.argument("name")
@pass_session
def show(session: Session, name: str) -> None:
    """Print one schedule. Exit code 3 if there is none."""
    print_schedule(session, session.store_entities().schedule_of(name))


def behaviour(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a schedule behaves."""
    for option in (
        click.option("--paused", is_flag=True, help="Store it paused."),
        click.option("--jitter", "jitter_s", type=duration, help="Fire up to so much later, the same for each tick."),
        click.option("--overlap", type=click.Choice(get_args(Overlap)), help="While the tick before is not handled."),
        click.option("--skip-if-older-than", "skip_if_older_than_s", type=duration, help="Drop ticks later than this."),
        click.option("--from-actual", is_flag=True, help="With --every: count the next tick from when this one fires."),
        click.option("--catch-up-per-s", type=click.FloatRange(0, min_open=True), help="With --misfire all; 10."),
        click.option("--misfire", type=click.Choice(get_args(Misfire)), help="What becomes of late ticks; latest."),
        click.option("--timezone", metavar="ZONE", help="IANA zone of the expression; Celery's timezone."),
        click.option("--at", type=to_instant, metavar="INSTANT", help="Once, ISO 8601 with its zone."),
        click.option("--every", "every_s", type=duration, help="An interval: 90, 90s, 5m, 2h, 1d."),
        click.option("--cron", metavar="EXPRESSION", help="A cron expression, such as '0 3 * * *'."),
        click.option("--queue", metavar="QUEUE", help="With --task: the queue it is sent to."),
        click.option("--task", metavar="TASK", help="Call a Celery task by its name, in place of an entity."),
        click.option("--workflow", metavar="NAME", help="Start a workflow, in place of calling an entity."),
    ):
        function = option(function)
    return function


@schedule_command.command("add", cls=OperationCommand)
@click.argument("name")
@click.argument("words", nargs=-1, metavar="[ADDRESS OPERATION] [ARGS]...", type=click.UNPROCESSED)
@behaviour
@pass_session
def add(
    session: Session,
    /,
    name: str,
    words: tuple[str, ...],
    task: str | None,
    workflow: str | None,
    queue: str | None,
    **options: Any,
) -> None:
    """Store a schedule, in the place of an earlier one of this name.

    It calls an operation of an entity, or with --task a Celery task, or with --workflow starts one. ARGS are as for
    `send`.
    """
    if task is not None and workflow is not None:
        raise click.UsageError("--task and --workflow exclude each other.")
    given = {option: value for option, value in options.items() if value is not None}
    if given.pop("from_actual"):
        given["calculate_next_from"] = "actual"
    if task is not None:
        args, kwargs = arguments_of(words, _AnyName())
        given["task_options"] = {"queue": queue} if queue else None
        print_schedule(session, session.entities().schedule(name, target=task, args=args, kwargs=kwargs, **given))
        return
    if queue is not None:
        raise click.UsageError("--queue goes with --task.")
    if workflow is not None:
        definition = session.entities().workflow_named(workflow)
        args, kwargs = arguments_of(words, definition.ref("tick").operation.parameters)
        print_schedule(session, session.entities().schedule(name, target=definition, args=args, kwargs=kwargs, **given))
        return
    if len(words) < 2:
        raise click.UsageError("give an ADDRESS and an OPERATION, or --task or --workflow.")
    call, found = call_of(session.entities(), words[0], words[1])
    args, kwargs = arguments_of(words[2:], list(inspect.signature(found.function).parameters)[1:])
    print_schedule(session, session.entities().schedule(name, target=call, args=args, kwargs=kwargs, **given))


class _AnyName(list[str]):
    """The parameters of a task, which nobody here knows: any name may be one."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isidentifier()


@schedule_command.command("pause")
@click.argument("name")
@pass_session
def pause(session: Session, name: str) -> None:
    """Have a schedule fire no more until it is resumed."""
    print_schedule(session, session.store_entities().pause_schedule(name))


@schedule_command.command("resume")
@click.argument("name")
@pass_session
def resume(session: Session, name: str) -> None:
    """Have a paused schedule fire again from now on; see `backfill` for what it would have fired meanwhile."""
    print_schedule(session, session.store_entities().resume_schedule(name))


@schedule_command.command("trigger")
@click.argument("name")
@pass_session
def trigger(session: Session, name: str) -> None:
    """Fire a schedule now, once, beside its ticks. Prints the message's id."""
    message_id = session.entities().trigger_schedule(name)
    if session.output == "text":
        click.echo(message_id)
    else:
        print_record(session.output, {"name": name, "id": message_id})


@schedule_command.command("backfill")
@click.argument("name")
@click.option("--from", "start", type=to_instant, required=True, metavar="INSTANT", help="The first instant.")
@click.option("--to", "end", type=to_instant, required=True, metavar="INSTANT", help="The instant behind the last.")
@confirmed
@pass_session
def backfill(session: Session, /, name: str, start: datetime, end: datetime, confirmation: Confirmation) -> None:
    """Fire the ticks between two instants that have not fired. Prints how many."""
    confirmation.ask(f"Fire the ticks of {name} from {start.isoformat()} to {end.isoformat()}?")
    fired = session.entities().backfill_schedule(name, start, end)
    if session.output == "text":
        click.echo(f"{len(fired)} fired")
    else:
        print_record(session.output, {"name": name, "fired": len(fired), "ids": fired})


@schedule_command.command("next")
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many.")
@pass_session
def next_ticks(session: Session, name: str, count: int) -> None:
    """List the next ticks of a schedule: their names, which are their nominal times, and when they are due."""
    ticks = session.store_entities().next_ticks(name, count)
    records = [{"tick": one.nominal, "due_at": one.at.isoformat()} for one in ticks]
    print_records(session.output, records, ("tick", "due_at"))


@schedule_command.command("remove")
@click.argument("name")
@confirmed
@pass_session
def remove(session: Session, /, name: str, confirmation: Confirmation) -> None:
    """Forget a schedule. One that the code declares comes back with the next worker that starts."""
    confirmation.ask(f"Remove schedule {name}?")
    session.store_entities().remove_schedule(name)


@schedule_command.command("sync")
@click.option("--prune", is_flag=True, help="Remove those that came from the code and are in it no more.")
@pass_session
def sync(session: Session, prune: bool) -> None:
    """Store what the code declares, as a worker does when it starts."""
    stored, removed = session.entities().store_schedules(prune=prune)
    records = [{"name": name, "outcome": "stored"} for name in stored]
    records += [{"name": name, "outcome": "removed"} for name in removed]
    print_records(session.output, records, ("name", "outcome"))


def print_schedule(session: Session, schedule: ScheduleStatus) -> None:
    """Print one schedule."""
    print_record(session.output, document(schedule))


def document(schedule: ScheduleStatus) -> dict[str, Any]:
    """A schedule as it is printed."""
    definition = schedule.definition
    policy = definition.policy if definition else None
    return {
        "name": schedule.name,
        "status": schedule.status,
        "target": schedule.target,
        "when": schedule.when,
        "origin": schedule.origin,
        "next_tick": schedule.next_tick,
        "next_at": schedule.next_at.isoformat() if schedule.next_at else None,
        "last_tick": schedule.last_tick,
        "last_fired_at": schedule.last_fired_at.isoformat(timespec="seconds") if schedule.last_fired_at else None,
        "lag_s": round(schedule.lag_s, 1),
        "fired": schedule.fired,
        "skipped": schedule.skipped,
        "misfire": policy.misfire if policy else None,
        "overlap": definition.overlap if definition else None,
        "catch_up_per_s": policy.catch_up_per_s if policy else None,
        "skip_if_older_than_s": policy.skip_if_older_than_s if policy else None,
        "calculate_next_from": policy.calculate_next_from if policy else None,
        "jitter_s": policy.jitter_s if policy else None,
        "failure": schedule.failure,
    }
