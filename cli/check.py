"""`check`: is everything there that a worker and its senders need?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from entitycelery.exceptions import EntityError

from .command import Command
from .exits import FAILED, OK, UNAVAILABLE
from .output import cell, print_aligned, print_records
from .session import Session, pass_session

if TYPE_CHECKING:
    from entitycelery import EntityCelery

_BROKER_TIMEOUT_S = 3


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    name: str
    ok: bool
    detail: str


@click.command("check", cls=Command)
@pass_session
@click.pass_context
def check_command(ctx: click.Context, session: Session) -> None:
    """Check settings, store, schema, broker and types: one line each.

    Exit code 1 if one of them failed, 69 if the store or the broker is unavailable.
    """
    findings = look(session.entities())
    if session.output == "text":
        print_aligned([[f.name, "ok" if f.ok else "failed", cell(f.detail)] for f in findings])
    else:
        records = [{"check": f.name, "ok": f.ok, "detail": f.detail} for f in findings]
        print_records(session.output, records, ())
    ctx.exit(verdict(findings))


def verdict(findings: list[Finding]) -> int:
    """The exit code of what was found."""
    failed = {finding.name for finding in findings if not finding.ok}
    if failed & {"store", "broker"}:
        return UNAVAILABLE
    return FAILED if failed else OK


def look(entities: EntityCelery) -> list[Finding]:
    """Look at everything; what depends on a failed look is left out."""
    settings = _look("settings", lambda: _settings(entities))
    findings = [settings]
    if settings.ok:
        store = _look("store", lambda: _store(entities))
        findings.append(store)
        if store.ok:
            findings.append(_look("schema", lambda: _schema(entities)))
    findings.append(_look("broker", lambda: _broker(entities)))
    findings.append(_look("types", lambda: _types(entities)))
    return findings


def _look(name: str, say: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, say())
    except EntityError as exc:
        return Finding(name, False, str(exc))
    except Exception as exc:  # noqa: BLE001 - every driver and every broker has errors of its own
        return Finding(name, False, f"{type(exc).__name__}: {exc}")


def _settings(entities: EntityCelery) -> str:
    settings = entities.settings
    groups = ", ".join(settings.shard_groups)
    return f"cluster {settings.cluster}, groups {groups}, {settings.shards_per_group} shards each"


def _store(entities: EntityCelery) -> str:
    entities.store.schema.migrations()
    concerns = entities.store.concerns(1, entities.settings.batch_size)
    return "; ".join([entities.database, *(f"warning: {sentence}" for sentence in concerns)])


def _schema(entities: EntityCelery) -> str:
    entities.store.schema.verify()
    names = [name for name, _ in entities.store.schema.migrations()]
    return f"{names[-1]}, up to date"


def _broker(entities: EntityCelery) -> str:
    with entities.app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=_BROKER_TIMEOUT_S)
        return str(connection.as_uri())


def _types(entities: EntityCelery) -> str:
    kinds = entities.types
    if not kinds:
        raise LookupError("no entity type is registered: is its module imported or autodiscovered?")
    return ", ".join(f"{kind.name} ({len(kind.operations)} operations)" for kind in kinds)
