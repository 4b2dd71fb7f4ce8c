"""`auto`: the list of pods inside Kubernetes, else pings."""

from __future__ import annotations

from entitycelery.health.k8s import in_kubernetes, k8s
from entitycelery.health.ping import ping
from entitycelery.health.verdict import Health, Place


def auto(place: Place) -> Health:
    """Whichever fits where we run."""
    return k8s(place) if in_kubernetes() else ping(place)
