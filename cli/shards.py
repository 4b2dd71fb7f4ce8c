"""`shards [list]` and `shards reshard`: who holds which shard, and another number of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .command import Confirmation, ListingGroup, confirmed
from .exits import FAILED, CommandFailed
from .output import print_record, print_records
from .session import Session, pass_session
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import ReshardPlan, ShardStatus

COLUMNS = ("group", "number", "holder", "since", "epoch", "pending", "oldest_s")
NOBODY = "-"


@click.group("shards", cls=ListingGroup)
def shards_command() -> None:
    """List shards, their holders and what waits in them; change their number."""


@shards_command.command("list", cls=WatchedCommand)
@click.option("--group", "group", metavar="NAME", help="Of this shard group.")
@click.option("--holder", "holder", metavar="ADDRESS", help="Held by this runner; - for those that nobody holds.")
@pass_session
def list_shards(session: Session, group: str | None, holder: str | None) -> None:
    """List every shard: its holder, since when, for the how-manyeth time, what waits in it and for how long.

    Counts all pending messages.
    """
    found = [one for one in session.entities().shards() if group in (None, one.shard.group)]
    records = [document(one) for one in found]
    wanted = [record for record in records if holder in (None, record["holder"] or NOBODY)]
    print_records(session.output, wanted, COLUMNS)


@shards_command.command("reshard")
@click.argument("number", metavar="N", type=click.IntRange(min=1))
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@confirmed
@pass_session
def reshard(session: Session, number: int, dry_run: bool, confirmation: Confirmation) -> None:
    """Give every group N shards, with all that waits in them; no worker may host entities meanwhile.

    Exit code 1 while one does, 69 if the broker is away: then the store is done, and the same command again removes
    the queues.
    """
    entities = session.entities()
    plan = entities.plan_reshard(number)
    if dry_run:
        report(session, plan)
        return
    if plan.refusal is not None:
        raise CommandFailed(FAILED, plan.refusal)
    moving = sum(group.moving_messages for group in plan.groups)
    if not plan.is_done:
        confirmation.ask(f"Change {plan.before} shards per group to {number}, and move {moving:,} pending messages?")
    report(session, entities.reshard(number))
    if session.output == "text":
        click.echo(f"\nset entity_shards_per_group = {number} wherever it is set, then start the workers")


def document(status: ShardStatus) -> dict[str, Any]:
    """A shard as it is printed."""
    return {
        "group": status.shard.group,
        "number": status.shard.number,
        "holder": None if status.holder is None else status.holder.address,
        "instance": None if status.holder is None else status.holder.instance,
        "since": None if status.since is None else status.since.isoformat(timespec="seconds"),
        "epoch": status.epoch,
        "pending": status.pending,
        "oldest_s": None if status.oldest_s is None else round(status.oldest_s, 1),
    }


def report(session: Session, plan: ReshardPlan) -> None:
    """Print what a reshard would do, or did."""
    groups = [
        {
            "group": group.group,
            "messages": group.messages,
            "moving": group.moving_messages,
            "dead_letters": group.dead_letters,
            "dead_moving": group.moving_dead_letters,
        }
        for group in plan.groups
    ]
    runners = [runner.address for runner in plan.runners]
    head = {"before": plan.before, "after": plan.after}
    if session.output != "text":
        print_record(session.output, {**head, "groups": groups, "queues": list(plan.queues), "runners": runners})
        return
    print_record("text", {**head, "queues to remove": len(plan.queues), "stop first": ", ".join(runners) or "none"})
    click.echo()
    print_records("text", groups, ("group", "messages", "moving", "dead_letters", "dead_moving"))
    for name in plan.queues:
        click.echo(f"queue {name} goes")
