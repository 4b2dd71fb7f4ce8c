"""The health modes by name, as `entity_health` says them: another one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from entitycelery.health.auto import auto
from entitycelery.health.k8s import k8s
from entitycelery.health.noop import noop
from entitycelery.health.ping import ping
from entitycelery.health.verdict import Health, Place

MODES: Mapping[str, Callable[[Place], Health]] = {
    "auto": auto,
    "k8s": k8s,
    "noop": noop,
    "ping": ping,
}


def health_of(place: Place) -> Health:
    """The health check that the settings name. It answers at once: see `Aside`."""
    return MODES[place.settings.health](place)
