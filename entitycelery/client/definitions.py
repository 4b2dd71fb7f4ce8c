"""From what is asked for to the definition of a schedule: when it fires, whom it calls, how it behaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from entitycelery.calls import Call, Prepared, checked_s
from entitycelery.codec import from_json, to_canonical_json
from entitycelery.durable.definition import WorkflowDefinition
from entitycelery.effects import CallOptions, Send
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.celery_schedules import recurrence_of
from entitycelery.scheduler.definition import (
    SCHEDULED_AT,
    Definition,
    EntityTarget,
    Target,
    TaskTarget,
    WorkflowTarget,
)
from entitycelery.scheduler.policy import CalculateNextFrom, Misfire, Policy
from entitycelery.scheduler.recurrence import Cron, Every, Once, Recurrence
from entitycelery.settings import Settings
from entitycelery.stored_schedule import NewSchedule, Origin, Overlap

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POLICY = Policy()


class ScheduleOptions(TypedDict, total=False):
    """How a schedule behaves; what is not given is as the defaults of `Policy` say.

    timezone: IANA zone of a cron expression; default: Celery's `timezone`.
    misfire, skip_if_older_than_s, catch_up_per_s, jitter_s, calculate_next_from: see `Policy`. Later than
        `entity_misfire_grace_s` is late.
    overlap: What a tick does that comes while the one before has not been handled: `queue`, `skip`, or
        `cancel_running`, which drops what that one's turn has done.
    """

    timezone: str | None
    misfire: Misfire
    skip_if_older_than_s: float | timedelta | None
    catch_up_per_s: float
    jitter_s: float | timedelta
    calculate_next_from: CalculateNextFrom
    overlap: Overlap


class Definitions:
    """Makes definitions for one app; `timezone` is Celery's."""

    def __init__(self, settings: Settings, envelope: Envelope, timezone: str) -> None:
        self._settings = settings
        self._envelope = envelope
        self._timezone = timezone

    def new(
        self,
        name: str,
        when: object,
        target: Target,
        options: ScheduleOptions,
        origin: Origin,
        *,
        now: datetime,
        anchor: datetime,
        paused: bool = False,
    ) -> NewSchedule:
        """A schedule whose first tick is not before `now`; an interval counts from `anchor`.

        Raises:
            ConfigurationError: Something of it makes no sense; the sentence names the schedule.
        """
        try:
            recurrence = self._recurrence(when, options.get("timezone"), anchor)
            definition = Definition(recurrence, target, self._policy(options), options.get("overlap", "queue"))
            definition.check()
            following = definition.first_tick(name, now)
        except ConfigurationError as exc:
            raise ConfigurationError(f"schedule {name!r}: {exc}") from exc
        return NewSchedule(name, definition.encode(), definition.generation, origin, following, paused)

    def _recurrence(self, when: object, timezone: str | None, anchor: datetime) -> Recurrence:
        if isinstance(when, Cron | Every | Once):
            return when
        zone = timezone or self._timezone
        return Cron(when, zone) if isinstance(when, str) else recurrence_of(when, timezone=zone, anchor=anchor)

    def _policy(self, options: ScheduleOptions) -> Policy:
        return Policy(
            misfire=options.get("misfire", _POLICY.misfire),
            grace_s=self._settings.misfire_grace_s,
            skip_if_older_than_s=checked_s("skip_if_older_than_s", options.get("skip_if_older_than_s")),
            catch_up_per_s=options.get("catch_up_per_s", _POLICY.catch_up_per_s),
            jitter_s=checked_s("jitter_s", options.get("jitter_s")) or 0.0,
            calculate_next_from=options.get("calculate_next_from", _POLICY.calculate_next_from),
        )

    def target(
        self,
        target: object,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        task_options: Mapping[str, Any] | None,
    ) -> Target:
        """Whom a schedule calls, checked as far as it can be.

        Raises:
            ConfigurationError: It can be no target.
            MalformedMessage: The arguments do not fit the operation.
        """
        name = target if isinstance(target, str) else getattr(target, "name", None)
        if isinstance(target, Call | Prepared):
            if task_options:
                raise ConfigurationError("task_options are for Celery tasks; an entity's operation has none")
            return self._entity_target(target, args, kwargs)
        if isinstance(target, WorkflowDefinition):
            if task_options:
                raise ConfigurationError("task_options are for Celery tasks; a workflow has none")
            return self._workflow_target(target, args, kwargs)
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                "the target of a schedule is an operation such as Account.ref('alice').bill, a workflow, a Celery task "
                f"or its name; got {target!r}"
            )
        given = {"args": list(args), "kwargs": dict(kwargs or {}), "options": dict(task_options or {})}
        # As they will be read: tuples are lists by then.
        read = from_json(to_canonical_json(given, f"the call of task {name}"))
        group = self._settings.shard_groups[0]
        return TaskTarget(name, read["args"], read["kwargs"], read["options"], group)

    def _workflow_target(
        self, target: WorkflowDefinition[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> WorkflowTarget:
        call: Call[..., Any] = target.ref("tick").ref.start
        aimed = self._entity_target(call, args, kwargs)
        return WorkflowTarget(aimed.type, aimed.args, aimed.group, aimed.tells_when)

    def _entity_target(
        self, target: Call[..., Any] | Prepared[Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> EntityTarget:
        if isinstance(target, Prepared):
            if args or kwargs:
                raise ConfigurationError("a prepared call has its arguments already: leave args and kwargs out")
            return self._aimed(target.send, tells_when=False)
        takes, given = target.takes(SCHEDULED_AT), dict(kwargs or {})
        tells_when = takes and SCHEDULED_AT not in given and not args
        if tells_when:
            # Checked as it will be called, stored without: each tick brings its own.
            given[SCHEDULED_AT] = _EPOCH
        return self._aimed(target.prepare(*args, **given).send, tells_when=tells_when)

    def _aimed(self, send: Send, *, tells_when: bool) -> EntityTarget:
        if send.options != CallOptions():
            raise ConfigurationError("the target of a schedule has no options: each tick has its own key and time")
        named = from_json(send.args)
        if tells_when:
            del named[SCHEDULED_AT]
        group = self._envelope.shard(send.address).group
        args = to_canonical_json(named, "the arguments").decode()
        return EntityTarget(send.address.type, send.address.id, send.operation, args, group, tells_when)
