"""`singleton list|restart|move`: what runs on exactly one runner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .command import ListingGroup
from .exits import NOT_FOUND, CommandFailed
from .output import print_record, print_records
from .session import Session, pass_session
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import Singleton

COLUMNS = ("name", "kind", "holder", "since", "heartbeat_s", "healthy", "restarts", "last_failure")


@click.group("singleton", cls=ListingGroup)
def singleton_command() -> None:
    """List singletons, start them again, move them to other runners."""


@singleton_command.command("list", cls=WatchedCommand)
@pass_session
def list_singletons(session: Session) -> None:
    """List every singleton: who runs it, since when, and how it is.

    Healthy is what runs, and has written a heartbeat within twice its interval.
    """
    print_records(session.output, [document(one) for one in session.entities().singletons()], COLUMNS)


@singleton_command.command("restart")
@click.argument("name", metavar="NAME")
@pass_session
def restart(session: Session, name: str) -> None:
    """Have a loop stopped and started again where it is, without a pause if it waits for one.

    Does not wait for it. Exit code 3 if there is none of the name.
    """
    session.entities().restart_singleton(name)
    report(session, name)


@singleton_command.command("move")
@click.argument("name", metavar="NAME")
@click.option("--to", "to", metavar="ADDRESS", help="The runner that is to have it, as `runners` lists it.")
@pass_session
def move(session: Session, name: str, to: str | None) -> None:
    """Have a loop run at another runner: at the one named, or anywhere but where it is.

    It stays there while that runner lives; without --to it does not come back while the present one lives. Does not
    wait for it. Exit code 3 if there is no such singleton, or no such runner.
    """
    session.entities().move_singleton(name, to)
    report(session, name)


def report(session: Session, name: str) -> None:
    """Print a singleton as it is now."""
    found = next((one for one in session.entities().singletons() if one.name == name), None)
    if found is None:
        raise CommandFailed(NOT_FOUND, f"the singleton {name!r} was deleted meanwhile")
    print_record(session.output, document(found))


def document(singleton: Singleton) -> dict[str, Any]:
    """A singleton as it is printed."""
    age_s, failed_at = singleton.heartbeat_age_s, singleton.last_failure_at
    return {
        "name": singleton.name,
        "kind": singleton.kind,
        "group": singleton.shard_group,
        "holder": None if singleton.holder is None else singleton.holder.address,
        "instance": None if singleton.holder is None else singleton.holder.instance,
        "since": None if singleton.since is None else singleton.since.isoformat(timespec="seconds"),
        "fence": singleton.fence,
        "pid": singleton.pid,
        "heartbeat_s": None if age_s is None else round(age_s, 1),
        "healthy": singleton.healthy,
        "restarts": singleton.restarts,
        "last_failure": singleton.last_failure,
        "failed": None if failed_at is None else failed_at.isoformat(timespec="seconds"),
        "wanted": None if singleton.wanted is None else singleton.wanted.address,
    }
