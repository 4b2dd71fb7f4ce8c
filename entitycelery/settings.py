"""Settings: Celery settings `entity_*`, the unit in the name.

Order: command line > `ENTITY_*` environment > `app.conf` > default. A bad value stops the start and names itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from entitycelery.address import ShardId, is_group_name, quoted, valid_cluster
from entitycelery.exceptions import ConfigurationError
from entitycelery.limits import DEEPEST_NESTING, LARGEST_ID_BYTES, LARGEST_PAYLOAD_BYTES, Limits
from entitycelery.singleton import Timing

HEALTH_MODES = ("auto", "noop", "ping", "k8s")
LOCK_MODES = ("advisory", "rows")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one app. Field `x` is the Celery setting `entity_x` and the variable `ENTITY_X`."""

    database_url: str | None = None
    """The store. Default: a SQLite file, only where no broker is configured either."""
    cluster: str = "default"
    """Names the database schema, the queues, the locks and the channels: clusters never meet."""
    ask_timeout_s: float = 30.0
    """Longest wait of an `ask` that names no time-out of its own."""
    shard_groups: tuple[str, ...] = ("default",)
    """The groups that a worker hosts."""
    shards_per_group: int = 64
    """Shards in each group; kept in the store, so every process must agree."""
    mailbox_capacity: int | None = None
    """Most pending messages of one entity; None: no limit and no check."""
    batch_size: int = 200
    """Most turns in one commit."""
    batch_budget_s: float = 0.05
    """Longest wait of a finished turn for its commit."""
    drain_budget_s: float = 0.25
    """A drain that still finds work after this time rings for its shard and gives its pool slot back."""
    workflow_max_steps: int = 5_000
    """Most entries in the journal of one workflow."""
    refresh_interval_s: float = 1.0
    """How often a runner looks for mail that waited too long."""
    app_version: str | None = None
    """The version of the app, shown beside its runners."""
    runner_weight: float = 1.0
    """The runner's share of the shards, relative to the other runners'."""
    lock_mode: str = "advisory"
    """How locks are held on PostgreSQL: `advisory` or, behind a transaction pooler, `rows`. SQLite: always rows."""
    lease_timeout_s: float = 10.0
    """A runner that has not been heard of for so long loses its leases."""
    starved_after_s: float = 5.0
    """A runner whose drains have waited so long for a slot of the pool gives its shards up, while others serve them."""
    singleton_confirm_s: float = 0.25
    """How often a runner confirms the loops that it runs; what is not confirmed ends within four times as long."""
    singleton_stop_timeout_s: float = 5.0
    """A loop that is told to stop, and is still this runner's, has so long; then its process is ended."""
    preemptive_shutdown: bool = True
    """Whether a worker that ends hands its shards over before it finishes its turns, or after."""
    drain_timeout_s: float = 15.0
    """Longest wait for running turns when a worker ends."""
    due_interval_s: float = 0.05
    """How often a runner looks for delayed messages where no database tells of them: SQLite, and `lock_mode` `rows`."""
    send_timeout_s: float = 5.0
    """A send that cannot be stored in this time raises SendTimeout."""
    send_retries: int = 3
    """How often a send is tried again when the store fails, within send_timeout_s."""
    reply_retention_s: float = 604_800.0
    """How long replies, and with them keys, are kept."""
    async_concurrency: int = 100
    """Most `async def` turns of one process that run at the same time."""
    turn_timeout_s: float = 300.0
    """Longest turn; then the attempt has failed and, with the prefork pool, its process is ended."""
    max_crashes: int = 3
    """A message that ended its process this often is set aside as a dead letter."""
    deploy_window_s: float = 3_600.0
    """A message that this worker's code does not know waits so long for another's; then it is a dead letter."""
    misfire_grace_s: float = 60.0
    """A tick that is later than this has misfired: what becomes of it is the schedule's `misfire`."""
    auto_migrate: bool | None = None
    """Whether a worker creates or upgrades the schema. Default: on SQLite yes, else no."""
    connections: int = 20
    """Most database connections of one process, for each of sending, waiting and draining."""
    max_payload_bytes: int = 1024 * 1024
    """Largest arguments of a message, and largest result, as JSON. Larger ones are refused at the sender."""
    max_state_bytes: int = 16 * 1024 * 1024
    """Largest state of one entity, as JSON. A turn that leaves a larger one has failed."""
    max_id_bytes: int = 1024
    """Longest id of an entity, in UTF-8."""
    max_nesting: int = 100
    """Deepest nesting of objects and lists in arguments, results and states."""

    log_format: str = "celery"
    """How a worker writes its log: `celery`, as Celery is configured; `json`, one object a line."""
    health: str = "auto"
    """How to tell whether a silent runner lives: `noop`, `ping`, `k8s`; `auto` is `k8s` in a pod, else `ping`."""
    health_k8s_namespace: str | None = None
    """Where the pods of the runners are. Default: our own pod's namespace."""
    health_k8s_selector: str | None = None
    """The label selector of those pods. Default: all of the namespace."""
    health_file: str | None = None
    """The file that a runner writes at every round of its duties. Default: none."""

    @property
    def wakeup_expires_s(self) -> float:
        """How long a wake-up is good for: the sweep has rung anew by then."""
        return 3 * self.refresh_interval_s

    @property
    def due_horizon_s(self) -> float:
        """Runners are told of mail that is due within this time; what is due later they see for themselves before."""
        return 2 * self.refresh_interval_s

    @property
    def served_shards(self) -> list[ShardId]:
        """All shards of the groups that a worker hosts, whoever holds them."""
        return [ShardId(group, number) for group in self.shard_groups for number in range(self.shards_per_group)]

    @property
    def suspect_after_s(self) -> float:
        """A runner that has not renewed its registration for so long is asked after: see entity_health."""
        return 3 * self.refresh_interval_s

    @property
    def singleton_timing(self) -> Timing:
        """When who confirms, stops, ends and follows."""
        return Timing(self.singleton_confirm_s)

    @property
    def limits(self) -> Limits:
        return Limits(
            payload_bytes=self.max_payload_bytes,
            state_bytes=self.max_state_bytes,
            id_bytes=self.max_id_bytes,
            nesting=self.max_nesting,
        )

    def __post_init__(self) -> None:
        valid_cluster(self.cluster)
        if not self.shard_groups:
            raise ConfigurationError("entity_shard_groups must name at least one group, got none")
        for group in self.shard_groups:
            if not is_group_name(group):
                raise ConfigurationError(
                    f"entity_shard_groups has names of letters, digits, '_' and '-', got {quoted(group)}"
                )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigurationError(f"entity_{name} must be greater than 0 and finite, got {value!r}")
        if self.log_format not in ("celery", "json"):
            raise ConfigurationError(f"entity_log_format is 'celery' or 'json', got {self.log_format!r}")
        if self.lock_mode not in LOCK_MODES:
            raise ConfigurationError(f"entity_lock_mode is 'advisory' or 'rows', got {self.lock_mode!r}")
        if self.health not in HEALTH_MODES:
            modes = ", ".join(map(repr, HEALTH_MODES))
            raise ConfigurationError(f"entity_health is one of {modes}, got {self.health!r}")
        for name, valid in _TEXTS.items():
            text = getattr(self, name)
            if text is not None and not valid.match(text):
                raise ConfigurationError(f"entity_{name} must match {valid.pattern}, got {text!r}")
        if not 0 <= self.deploy_window_s < math.inf:
            raise ConfigurationError(
                f"entity_deploy_window_s must be 0 or greater and finite, got {self.deploy_window_s!r}"
            )
        for name, most in _AT_MOST.items():
            if getattr(self, name) > most:
                raise ConfigurationError(f"entity_{name} must be at most {most:,}, got {getattr(self, name):,}")
        if self.lease_timeout_s <= 3 * self.refresh_interval_s:
            raise ConfigurationError(
                "entity_lease_timeout_s must exceed 3 x entity_refresh_interval_s "
                f"({3 * self.refresh_interval_s:g}), got {self.lease_timeout_s:g}"
            )
        if self.send_retries < 0:
            raise ConfigurationError(f"entity_send_retries must not be negative, got {self.send_retries}")
        if self.batch_budget_s > self.turn_timeout_s:
            raise ConfigurationError(
                f"entity_batch_budget_s must not exceed entity_turn_timeout_s ({self.turn_timeout_s}), "
                f"got {self.batch_budget_s}"
            )


_POSITIVE = [
    "ask_timeout_s",
    "shards_per_group",
    "mailbox_capacity",
    "batch_size",
    "batch_budget_s",
    "drain_budget_s",
    "workflow_max_steps",
    "refresh_interval_s",
    "runner_weight",
    "lease_timeout_s",
    "starved_after_s",
    "singleton_confirm_s",
    "singleton_stop_timeout_s",
    "drain_timeout_s",
    "due_interval_s",
    "misfire_grace_s",
    "send_timeout_s",
    "reply_retention_s",
    "async_concurrency",
    "turn_timeout_s",
    "max_crashes",
    "connections",
    "max_payload_bytes",
    "max_state_bytes",
    "max_id_bytes",
    "max_nesting",
]
_TEXTS = {
    "health_k8s_namespace": re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"),
    "health_k8s_selector": re.compile(r"\S.*\Z"),
    "health_file": re.compile(r"\S.*\Z"),
    "app_version": re.compile(r"\S.*\Z"),
}
_AT_MOST = {
    "max_payload_bytes": LARGEST_PAYLOAD_BYTES,
    "max_state_bytes": LARGEST_PAYLOAD_BYTES,
    "max_id_bytes": LARGEST_ID_BYTES,
    "max_nesting": DEEPEST_NESTING,
}


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


def _whole(value: object) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("expected a whole number")
    return int(value)  # type: ignore[call-overload, no-any-return]


def _number(value: object) -> float:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return float(value)  # type: ignore[arg-type]


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    return tuple(str(part).strip() for part in parts)


_READERS: Mapping[str, Callable[[Any], object]] = {
    "str": str,
    "str | None": str,
    "float": _number,
    "int": _whole,
    "int | None": _whole,
    "tuple[str, ...]": _names,
    "bool": lambda value: _flag(value) if isinstance(value, str) else bool(value),
    "bool | None": lambda value: _flag(value) if isinstance(value, str) else bool(value),
}

SETTING_NAMES = tuple(f"entity_{field.name}" for field in dataclasses.fields(Settings))


def read_settings(
    conf: Mapping[str, Any], environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of an app.

    Raises:
        ConfigurationError: A value that is not of its kind or out of its range, named with where it came from.
    """
    chosen: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        name = f"entity_{field.name}"
        sources = (
            ("the command line", (overrides or {}).get(field.name)),
            (f"the environment variable {name.upper()}", environ.get(name.upper())),
            (f"the setting {name}", conf.get(name)),
        )
        for source, value in sources:
            if value is None:
                continue
            try:
                chosen[field.name] = _READERS[str(field.type)](value)
            except (TypeError, ValueError) as exc:
                raise ConfigurationError(f"{name} is no {field.type}: {value!r} from {source}") from exc
            break
    return Settings(**chosen)
