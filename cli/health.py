"""`health live|ready`: probes for whoever looks after workers, such as Kubernetes and systemd.

`live` reads a file and nothing else, so it imports no app unless it must ask it for the file's name.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import click

from entitycelery.exceptions import EntityError
from entitycelery.health.heartbeat import Heartbeat, read_heartbeat

from .command import Group
from .exits import FAILED, UNAVAILABLE, USAGE, CommandFailed
from .output import print_record
from .session import Session, pass_session
from .values import duration

if TYPE_CHECKING:
    from entitycelery import EntityCelery
    from entitycelery.placement import Runner

FILE_VARIABLE = "ENTITY_HEALTH_FILE"
_MARGIN_S = 2.0

_file_option = click.option("--file", "path", metavar="PATH", help="In place of entity_health_file.")


@click.group("health", cls=Group)
def health_command() -> None:
    """Say whether a worker lives, and whether it is ready: for probes. Code 0 means yes."""


@health_command.command("live")
@_file_option
@click.option("--max-age", "max_age_s", type=duration, metavar="DURATION", help="Oldest beat that is good enough.")
@pass_session
def live(session: Session, path: str | None, max_age_s: float | None) -> None:
    """Whether the runner's loop goes round; looks at its heartbeat file only.

    Without --max-age a beat is good for as long as it says itself.
    """
    path = path or _named_file(session)
    if path is None:
        raise CommandFailed(USAGE, f"which heartbeat file? Give --file or {FILE_VARIABLE}, or the app with -A")
    beat = _beat_in(path, "live")
    now_epoch_s = time.time()
    age_s = beat.age_s(now_epoch_s)
    if not beat.is_fresh(now_epoch_s, max_age_s):
        allowed_s = beat.fresh_s if max_age_s is None else max_age_s
        raise CommandFailed(
            FAILED,
            f"not live: the last beat of worker {beat.worker} (pid {beat.pid}) is {age_s:.1f} s old, "
            f"more than {allowed_s:g} s: its runner has ended or is stuck",
        )
    _print(session, "live", {"worker": beat.worker, "pid": beat.pid, "beat_age_s": round(age_s, 3)})


@health_command.command("ready")
@_file_option
@click.option("--timeout", "timeout_s", type=duration, default="5s", show_default=True, metavar="DURATION")
@pass_session
def ready(session: Session, path: str | None, timeout_s: float) -> None:
    """Whether store and broker answer, and this worker's runner is registered and was seen lately.

    The heartbeat file says which worker; without one, any runner of this host will do. Code 69 if the store or the
    broker does not answer within --timeout.
    """
    entities = session.entities()
    path = path or _named_file(session)
    beat = None if path is None else _beat_in(path, "ready")
    found = _ask({"store": entities.runners, "broker": lambda: _reach_broker(entities, timeout_s)}, timeout_s)
    runner = runner_of(found["store"], beat, socket.gethostname())
    complaint = unready(runner, beat, entities.settings.refresh_interval_s)
    if runner is None or complaint is not None:
        raise CommandFailed(FAILED, f"not ready: {complaint}")
    _print(session, "ready", {"worker": runner.worker, "node": runner.address, "seen_s_ago": round(runner.unseen_s, 3)})


def runner_of(runners: Sequence[Runner], beat: Heartbeat | None, host: str) -> Runner | None:
    """The runner that a beat is of; without a beat the one of this host that was seen last."""
    if beat is not None:
        return next((runner for runner in runners if runner.worker == beat.worker), None)
    return min((runner for runner in runners if runner.host == host), key=lambda runner: runner.unseen_s, default=None)


def unready(runner: Runner | None, beat: Heartbeat | None, refresh_interval_s: float) -> str | None:
    """What is wrong with a runner, if anything."""
    if runner is None:
        who = f"of this host ({socket.gethostname()})" if beat is None else f"of worker {beat.worker} (pid {beat.pid})"
        return f"no runner {who} is registered"
    if runner.leaving:
        return f"the runner of {runner.address} is leaving"
    if runner.locked is False:
        return f"the runner of {runner.address} has lost its database session"
    longest_s = 3 * refresh_interval_s + _MARGIN_S
    if runner.unseen_s > longest_s:
        return f"the runner of {runner.address} was last seen {runner.unseen_s:.1f} s ago, more than {longest_s:g} s"
    return None


def _named_file(session: Session) -> str | None:
    named = os.environ.get(FILE_VARIABLE)
    if named or not session.has_app:
        return named
    return session.entities().settings.health_file


def _beat_in(path: str, what: str) -> Heartbeat:
    try:
        beat = read_heartbeat(path)
    except OSError as exc:
        raise CommandFailed(FAILED, f"not {what}: the heartbeat file cannot be read: {exc}") from exc
    if beat is None:
        raise CommandFailed(FAILED, f"not {what}: there is no heartbeat in {path}")
    return beat


class _Question(threading.Thread):
    """Asks in a thread that nobody has to wait for: drivers do not all know how to give up."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.answer: Any = None
        self.trouble: str | None = None

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except EntityError as exc:
            self.trouble = str(exc)
        except Exception as exc:  # noqa: BLE001 - every broker has errors of its own
            self.trouble = f"{type(exc).__name__}: {exc}"


def _ask(asked: Mapping[str, Callable[[], Any]], timeout_s: float) -> dict[str, Any]:
    questions = {name: _Question(ask) for name, ask in asked.items()}
    for question in questions.values():
        question.start()
    until_s = time.monotonic() + timeout_s
    troubles = []
    for name, question in questions.items():
        question.join(max(0.0, until_s - time.monotonic()))
        if question.is_alive():
            troubles.append(f"the {name} did not answer within {timeout_s:g} s")
        elif question.trouble is not None:
            troubles.append(f"the {name} is unavailable: {question.trouble}")
    if troubles:
        raise CommandFailed(UNAVAILABLE, f"not ready: {'; '.join(troubles)}")
    return {name: question.answer for name, question in questions.items()}


def _reach_broker(entities: EntityCelery, timeout_s: float) -> None:
    with entities.app.connection_for_write(connect_timeout=timeout_s) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=ceil(timeout_s))


def _print(session: Session, verdict: str, details: dict[str, Any]) -> None:
    if session.output == "text":
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in details.items())
        click.echo(f"{verdict}: {said}")
    else:
        print_record(session.output, {verdict: True, **details})
