"""`k8s`: whose pod is gone is dead. The only module that knows Kubernetes.

Asks the API server for the pods of a namespace, with the service account that every pod is given.
A runner belongs to the pod whose name is its host name.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import quote, urlencode

import msgspec

from entitycelery.clock import Deadline
from entitycelery.health.aside import Aside
from entitycelery.health.verdict import Health, Place, everybody
from entitycelery.placement import Runner

log = logging.getLogger("entitycelery.health")

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
PORT_VARIABLE = "KUBERNETES_SERVICE_PORT"
ANSWER_WITHIN_S = 2.0

_PAGE = 250
_CHUNK_BYTES = 65_536
_LARGEST_ANSWER_BYTES = 64 * 1024 * 1024
_LONGEST_HOST_NAME = 63
_SHOWN = 300


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str
    last_transition_at: datetime | None = msgspec.field(name="lastTransitionTime", default=None)


class _Metadata(msgspec.Struct, frozen=True):
    name: str


class _Spec(msgspec.Struct, frozen=True):
    hostname: str | None = None


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""
    conditions: tuple[_Condition, ...] | None = None


class Pod(msgspec.Struct, frozen=True):
    """What counts of a pod."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def host_names(self) -> set[str]:
        """What a process in it may know as its host: the kubelet cuts long names."""
        names = filter(None, (self.metadata.name, self.spec.hostname))
        return {name[:_LONGEST_HOST_NAME].rstrip("-.") for name in names}

    @property
    def is_alive(self) -> bool:
        """Whether it is ready or still initialising."""
        if self.status.phase in ("Succeeded", "Failed"):
            return False
        found = {condition.type: condition for condition in self.status.conditions or ()}
        initialized, ready = found.get("Initialized"), found.get("Ready")
        if initialized is None or initialized.status != "True" or ready is None or ready.status == "True":
            return True
        # It has never been ready if nothing has changed that since it was initialised.
        began_at, since = initialized.last_transition_at, ready.last_transition_at
        return began_at is None or since is None or since <= began_at


class _ListMetadata(msgspec.Struct, frozen=True):
    continue_: str | None = msgspec.field(name="continue", default=None)


class _PodList(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: tuple[Pod, ...] | None


class PodList:
    """The pods of a namespace, as the API server lists them to our service account."""

    def __init__(
        self,
        *,
        namespace: str | None = None,
        selector: str | None = None,
        environ: Mapping[str, str] = os.environ,
        account: Path = SERVICE_ACCOUNT,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self._namespace = namespace
        self._selector = selector
        self._environ = environ
        self._account = account
        self._answer_within_s = answer_within_s

    def pods(self) -> list[Pod]:
        """All pods, page by page.

        Raises:
            OSError, HTTPException, ValueError, msgspec.MsgspecError: It was not told, in time, what they are.
        """
        deadline = Deadline(self._answer_within_s)
        with closing(self._connection()) as connection:
            return [pod for page in self._pages(connection, deadline) for pod in page.items or ()]

    def _connection(self) -> HTTPSConnection:
        host, port = self._environ.get(HOST_VARIABLE), self._environ.get(PORT_VARIABLE) or "443"
        if not host:
            raise FileNotFoundError(f"{HOST_VARIABLE} is not set, so this is no pod of Kubernetes")
        trusted = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        return HTTPSConnection(host, int(port), timeout=self._answer_within_s, context=trusted)

    def _pages(self, connection: HTTPSConnection, deadline: Deadline) -> Iterator[_PodList]:
        # Read anew each time: the kubelet replaces the token long before it expires.
        token = self._read("token")
        namespace = self._namespace or self._read("namespace")
        query: dict[str, str | int] = {"limit": _PAGE}
        if self._selector:
            query["labelSelector"] = self._selector
        while True:
            path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods?{urlencode(query)}"
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}", "Accept": "application/json"})
            page = msgspec.json.decode(_answer(connection, deadline), type=_PodList)
            yield page
            if not page.metadata.continue_:
                return
            query["continue"] = page.metadata.continue_

    def _read(self, name: str) -> str:
        return (self._account / name).read_text().strip()


def _answer(connection: HTTPSConnection, deadline: Deadline) -> bytes:
    body = bytearray()
    # Closed, the response leaves the connection to the next page.
    with connection.getresponse() as response:
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if deadline.passed:
                raise TimeoutError("the API server did not answer in time")
            if len(body) > _LARGEST_ANSWER_BYTES:
                raise ConnectionError(f"the API server answered with more than {_LARGEST_ANSWER_BYTES:,} bytes")
    if response.status != HTTPStatus.OK:
        raise ConnectionError(f"{response.status} {response.reason}: {bytes(body[:_SHOWN])!r}")
    return bytes(body)


class K8s:
    """Condemns whose pod is gone, or is neither ready nor still initialising.

    Where our own pod does not pass, the list is not about us, or the trouble is everybody's: nobody is condemned.
    """

    def __init__(self, pods: PodList, *, own_host: str | None = None) -> None:
        self._pods = pods
        self._own_host = own_host or socket.gethostname()

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        try:
            pods = self._pods.pods()
        except (OSError, HTTPException, ValueError, msgspec.MsgspecError) as exc:
            log.warning("the pods are not known, all runners count as alive: %s: %s", type(exc).__name__, exc)
            return everybody(runners)
        alive = {name for pod in pods if pod.is_alive for name in pod.host_names}
        if self._own_host not in alive:
            log.warning(
                "our own pod %s is not among the %d that live, of %d listed; all runners count as alive",
                self._own_host,
                len(alive),
                len(pods),
            )
            return everybody(runners)
        return {runner.instance for runner in runners if runner.host in alive}


def in_kubernetes(environ: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT) -> bool:
    """Whether this process runs in a pod that has a service account."""
    return HOST_VARIABLE in environ and (account / "token").exists()


def k8s(place: Place) -> Health:
    """The pods of the namespace and the selector of the settings."""
    settings = place.settings
    return Aside(K8s(PodList(namespace=settings.health_k8s_namespace, selector=settings.health_k8s_selector)))
