"""`runners`: the workers that host entities."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from .output import print_records
from .session import Session, pass_session
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import Runner

COLUMNS = (
    *("address", "state", "leases", "seen_s", "groups", "weight", "pool", "host", "pid"),
    *("machine_id", "library", "app", "started", "instance"),
)


@click.command("runners", cls=WatchedCommand)
@pass_session
def runners_command(session: Session) -> None:
    """List the workers that host entities, and how they are.

    \b
    serving  holds its share of the shards
    starved  all its slots are taken by other tasks: it takes no shards
    leaving  it gives its shards up to end
    unseen   it is dead, or has been silent for entity_lease_timeout_s
    """
    entities = session.entities()
    placement = entities.placement()
    leases = Counter(lease.holder for lease in placement.leases)
    found = sorted(placement.runners, key=lambda runner: (runner.address, runner.instance))
    patience_s = entities.settings.lease_timeout_s
    print_records(session.output, [document(one, leases[one.instance], patience_s) for one in found], COLUMNS)


def document(runner: Runner, leases: int, patience_s: float) -> dict[str, Any]:
    """A runner as it is printed."""
    return {
        "address": runner.address,
        "instance": runner.instance,
        "state": state_of(runner, patience_s),
        "leases": leases,
        "groups": list(runner.groups),
        "weight": runner.weight,
        "pool": runner.pool,
        "host": runner.host,
        "pid": runner.pid,
        "machine_id": runner.machine_id,
        "library": runner.library_version,
        "app": runner.app_version,
        "started": runner.started_at.isoformat(timespec="seconds"),
        "seen_s": round(runner.unseen_s, 1),
    }


def state_of(runner: Runner, patience_s: float) -> str:
    """In a word how a runner is."""
    if runner.locked is False or runner.unseen_s >= patience_s:
        return "unseen"
    if runner.leaving:
        return "leaving"
    return "starved" if runner.starved else "serving"
