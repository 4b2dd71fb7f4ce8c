"""Composition: from settings to the parts of one app. The only place that names concrete drivers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from celery import Celery
from celery.result import assert_will_not_block  # type: ignore[attr-defined]

from entitycelery.client.client import Client
from entitycelery.client.control import Control
from entitycelery.client.resharder import Resharder
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError
from entitycelery.registry import Registry
from entitycelery.runtime.host import Host
from entitycelery.settings import Settings, read_settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from entitycelery.transports.bell import Bell, Ringer
from entitycelery.transports.broker import BrokerRinger
from entitycelery.transports.queues import ShardQueues


class Parts(msgspec.Struct, frozen=True):
    """What an app's entities work with."""

    settings: Settings
    store: SqlStore
    envelope: Envelope
    client: Client
    control: Control
    host: Host
    registry: Registry
    resharder: Resharder
    send_task: Callable[..., Any]


def settings_of(app: Celery, overrides: Mapping[str, Any]) -> Settings:
    """The settings of an app.

    Raises:
        ConfigurationError: One is bad; the sentence names it.
    """
    conf: Mapping[str, Any] = app.conf
    # Celery reads its configuration at first use, and only then it is known whether there is a broker.
    conf.get("broker_url")
    return read_settings(conf, os.environ, overrides)


def compose(
    app: Celery,
    registry: Registry,
    overrides: Mapping[str, Any],
    async_result: Callable[[str, Callable[[str], Any]], Any],
) -> Parts:
    """The parts of an app, by its settings.

    Raises:
        ConfigurationError: A setting is bad or missing; the sentence names it.
    """
    settings = settings_of(app, overrides)
    if settings.database_url is None:
        raise ConfigurationError(
            "entity_database_url is not set: a broker is configured, so name the store as well, "
            "for example postgresql://localhost/shop"
        )
    store = SqlStore(
        driver_url(settings.database_url),
        cluster=settings.cluster,
        shards_per_group=settings.shards_per_group,
        connections=settings.connections,
        timeout_s=settings.send_timeout_s,
        lock_mode=settings.lock_mode,
        lease_s=settings.lease_timeout_s,
        horizon_s=settings.due_horizon_s,
    )
    ringer = BrokerRinger(app, settings.cluster, settings.wakeup_expires_s)
    return assemble(app, registry, settings, store, ringer, async_result)


def assemble(
    app: Celery,
    registry: Registry,
    settings: Settings,
    store: SqlStore,
    ringer: Ringer,
    async_result: Callable[[str, Callable[[str], Any]], Any],
    client_of: Callable[..., Client] = Client,
    send_task: Callable[..., Any] | None = None,
) -> Parts:
    """The parts of an app on a store, with what carries wake-ups, waits for replies, and sends Celery tasks."""
    envelope = Envelope(
        settings.cluster,
        settings.mailbox_capacity,
        settings.limits,
        shards_per_group=lambda: store.shards_per_group,
        group_of=registry.group_of,
    )
    bell = Bell(ringer, store.attended)
    client = client_of(
        store=store,
        settings=settings,
        envelope=envelope,
        bell=bell,
        may_block=assert_will_not_block,
        async_result=async_result,
    )
    control = Control(store=store, envelope=envelope, registry=registry, bell=bell)
    host = Host(
        registry=registry,
        store=store,
        settings=settings,
        envelope=envelope,
        bell=bell,
        async_result=async_result,
    )
    resharder = Resharder(store=store, settings=settings, registry=registry, queues=ShardQueues(app))
    # As it is when it is called: who instruments an app replaces its methods.
    sender = send_task or (lambda *given, **options: app.send_task(*given, **options))
    return Parts(settings, store, envelope, client, control, host, registry, resharder, sender)
