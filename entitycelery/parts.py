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
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError
from entitycelery.registry import Registry
from entitycelery.runtime.host import Host
from entitycelery.settings import Settings, read_settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from entitycelery.transports.bell import Bell
from entitycelery.transports.broker import BrokerRinger


class Parts(msgspec.Struct, frozen=True):
    """What an app's entities work with."""

    settings: Settings
    store: SqlStore
    envelope: Envelope
    client: Client
    control: Control
    host: Host
    registry: Registry


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
    conf: Mapping[str, Any] = app.conf
    # Celery reads its configuration at first use, and only then it is known whether there is a broker.
    conf.get("broker_url")
    settings = read_settings(conf, os.environ, overrides)
    if settings.database_url is None:
        raise ConfigurationError(
            "entity_database_url is not set: a broker is configured, so name the store as well, "
            "for example postgresql://localhost/shop"
        )
    envelope = Envelope(settings.cluster, settings.shards_per_group, settings.mailbox_capacity, settings.limits)
    store = SqlStore(
        driver_url(settings.database_url),
        cluster=settings.cluster,
        shards_per_group=settings.shards_per_group,
        connections=settings.connections,
        timeout_s=settings.send_timeout_s,
    )
    bell = Bell(BrokerRinger(app, settings.cluster, settings.wakeup_expires_s), store.attended)
    client = Client(
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
    return Parts(settings, store, envelope, client, control, host, registry)
