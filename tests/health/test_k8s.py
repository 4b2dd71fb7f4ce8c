"""The pod list: who counts as alive, how it is asked for, and that no failure condemns anybody."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from entitycelery.health.k8s import K8s, Pod, PodList
from entitycelery.health.verdict import everybody
from tests.health.api_server import (
    NAMESPACE,
    TOKEN,
    ApiServer,
    Instead,
    api_server,
    failure,
    make_authority,
    pod,
    reply,
)
from tests.health.records import runner

ANSWER_WITHIN_S = 0.5
READY = {"Initialized": "True", "Ready": "True"}
UNREADY = {"Initialized": "True 2030-01-01T12:00:00Z", "Ready": "False 2030-01-01T13:00:00Z"}
ALIVE, DEAD = runner("alive", host="alive-pod"), runner("dead", host="dead-pod")

Authority = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> list[Authority]:
    """The cluster's own, and another one."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("authorities")
    return [make_authority(folder, name) for name in ("cluster", "stranger")]


@pytest.fixture
def server(authorities: list[Authority]) -> Iterator[ApiServer]:
    """An API server with our own pod, a living and a failing one."""
    _, certificate, key = authorities[0]
    with api_server(certificate, key) as api:
        api.pods = [pod("own-pod", **READY), pod("alive-pod", **READY), pod("dead-pod", **UNREADY)]
        yield api


@pytest.fixture
def account(tmp_path: Path, authorities: list[Authority]) -> Path:
    """What is mounted into every pod."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "namespace").write_text(NAMESPACE)
    shutil.copy(authorities[0][0], tmp_path / "ca.crt")
    return tmp_path


@pytest.fixture
def look(server: ApiServer, account: Path) -> Callable[..., set[str]]:
    """Who is found healthy; `settings` are those of the pod list."""

    def healthy(**settings: Any) -> set[str]:
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        found = PodList(**{"environ": environ, "account": account, "answer_within_s": ANSWER_WITHIN_S, **settings})
        return K8s(found, own_host="own-pod").healthy([ALIVE, DEAD])

    return healthy


@pytest.mark.parametrize(
    ("status", "is_alive"),
    [
        ({**READY}, True),
        ({**UNREADY}, False),
        ({"phase": "Pending"}, True),
        ({"phase": "Pending", "Initialized": "False", "Ready": "False"}, True),
        # Started, and never ready until now: the conditions have not changed since.
        ({"Initialized": "True", "Ready": "False"}, True),
        ({"Initialized": "True 2030-01-01T12:00:09Z", "Ready": "False 2030-01-01T12:00:00Z"}, True),
        ({"Initialized": "True", "Ready": "Unknown 2030-01-01T13:00:00Z"}, False),
        ({"phase": "Running"}, True),
        ({"phase": "Succeeded", **READY}, False),
        ({"phase": "Failed"}, False),
        ({}, True),
    ],
    ids=str,
)
def test_a_pod_lives_while_it_is_ready_or_still_initialising(status: dict[str, str], is_alive: bool) -> None:
    assert msgspec.convert(pod("one", **status), Pod).is_alive is is_alive


def test_a_pod_is_known_by_its_name_and_its_host_name_cut_as_the_kubelet_does() -> None:
    long = msgspec.convert(pod(f"{'x' * 62}-suffix"), Pod)
    named = msgspec.convert({"metadata": {"name": "bare"}, "spec": {"hostname": "chosen"}}, Pod)

    assert long.host_names == {"x" * 62}
    assert named.host_names == {"bare", "chosen"}


def test_runners_of_ready_pods_live_and_of_others_do_not(look: Callable[..., set[str]]) -> None:
    assert look() == {"i-alive"}


def test_a_runner_whose_pod_is_gone_is_dead(look: Callable[..., set[str]], server: ApiServer) -> None:
    server.pods = [item for item in server.pods if item["metadata"]["name"] != "dead-pod"]

    assert look() == {"i-alive"}


def test_the_namespace_is_our_own_or_the_one_of_the_settings(
    look: Callable[..., set[str]], account: Path, server: ApiServer
) -> None:
    (account / "namespace").write_text("other")
    assert look() == everybody([ALIVE, DEAD])

    assert look(namespace=NAMESPACE) == {"i-alive"}
    assert [urlsplit(path).path for path in server.paths] == [
        "/api/v1/namespaces/other/pods",
        f"/api/v1/namespaces/{NAMESPACE}/pods",
    ]


def test_the_selector_chooses_the_pods(look: Callable[..., set[str]], server: ApiServer) -> None:
    labels = {"app": "shop", "tier": "worker"}
    server.pods = [pod("own-pod", labels=labels, **READY), pod("alive-pod", **READY), pod("dead-pod", labels=labels)]

    assert look(selector="app=shop,tier=worker") == {"i-dead"}


def test_all_pages_are_read_with_the_same_selector(look: Callable[..., set[str]], server: ApiServer) -> None:
    labels = {"app": "shop"}
    server.largest_page = 10
    others = [pod(f"other-{number}", labels=labels, **READY) for number in range(47)]
    server.pods = [pod("alive-pod", labels=labels, **READY), *others, pod("own-pod", labels=labels, **READY)]

    assert look(selector="app=shop") == {"i-alive"}
    queries = [parse_qs(urlsplit(path).query) for path in server.paths]
    assert len(queries) == 5
    assert all(query["labelSelector"] == ["app=shop"] and "limit" in query for query in queries)


def test_the_token_is_read_anew_each_time(look: Callable[..., set[str]], account: Path, server: ApiServer) -> None:
    assert look() == {"i-alive"}
    server.token = "the next one"
    (account / "token").write_text("the next one")

    assert look() == {"i-alive"}


def answer(status: int, body: bytes) -> Instead:
    return lambda _api, request: reply(request, status, body)


def silence(api: ApiServer, _request: BaseHTTPRequestHandler) -> None:
    api.released.wait(30)


def trickle(api: ApiServer, request: BaseHTTPRequestHandler) -> None:
    """A body that does not end, a byte at a time."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    while not api.released.wait(0.05):
        request.wfile.write(b" ")


def hang_up(_api: ApiServer, request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def cut_short(_api: ApiServer, request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"kind": "PodList", "metadata": {}, "items": [')
    request.close_connection = True


def redirect(_api: ApiServer, request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "https://127.0.0.1:1/")
    request.send_header("Content-Length", "0")
    request.end_headers()


NO_ANSWERS: dict[str, Instead] = {
    "401": answer(401, failure(401, "Unauthorized")),
    "403": answer(403, failure(403, "pods is forbidden: User cannot list resource")),
    "500": answer(500, failure(500, "etcdserver: request timed out")),
    "list with 500": answer(500, b'{"metadata": {}, "items": [{"metadata": {"name": "own-pod"}}]}'),
    "html": answer(200, b"<html>not JSON</html>"),
    "bytes": answer(200, b"\xff\xfe\x00"),
    "array": answer(200, b"[]"),
    "status": answer(200, failure(500, "a Status, no list")),
    "no-name": answer(200, b'{"metadata": {}, "items": [{"metadata": {"name": 5}}]}'),
    "empty": answer(200, b""),
    "endless": answer(200, b'{"metadata": {"continue": "more"}, "items": []}'),
    "silence": silence,
    "trickle": trickle,
    "hang-up": hang_up,
    "cut-short": cut_short,
    "redirect": redirect,
}


@pytest.mark.parametrize("instead", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_an_answer_that_is_none_condemns_nobody_in_bounded_time_and_is_logged(
    look: Callable[..., set[str]],
    server: ApiServer,
    instead: Instead,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.instead = instead
    began_s = time.monotonic()

    with caplog.at_level(logging.WARNING):
        assert look() == everybody([ALIVE, DEAD])

    assert time.monotonic() - began_s < 4 * ANSWER_WITHIN_S
    [record] = caplog.records
    assert "the pods are not known" in record.getMessage()
    assert TOKEN not in record.getMessage()


def test_a_server_that_is_not_there_condemns_nobody(look: Callable[..., set[str]]) -> None:
    nowhere = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}

    assert look(environ=nowhere) == everybody([ALIVE, DEAD])
    assert look(environ={}) == everybody([ALIVE, DEAD])


def test_a_server_of_another_authority_gets_no_token(
    look: Callable[..., set[str]], account: Path, authorities: list[Authority], server: ApiServer
) -> None:
    shutil.copy(authorities[1][0], account / "ca.crt")

    assert look() == everybody([ALIVE, DEAD])
    assert server.paths == []


@pytest.mark.parametrize("missing", ["token", "namespace", "ca.crt"])
def test_a_pod_without_a_service_account_condemns_nobody(
    look: Callable[..., set[str]], account: Path, missing: str
) -> None:
    (account / missing).unlink()

    assert look() == everybody([ALIVE, DEAD])


def test_a_list_without_our_own_pod_condemns_nobody(
    look: Callable[..., set[str]], server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.pods = [pod("alive-pod", **READY)]

    assert look() == everybody([ALIVE, DEAD])
    assert "own-pod" in caplog.text


def test_where_our_own_pod_is_not_ready_either_nobody_is_condemned(
    look: Callable[..., set[str]], server: ApiServer
) -> None:
    server.pods = [pod("own-pod", **UNREADY), pod("alive-pod", **READY), pod("dead-pod", **UNREADY)]

    assert look() == everybody([ALIVE, DEAD])


def test_an_empty_list_condemns_nobody(look: Callable[..., set[str]], server: ApiServer) -> None:
    server.instead = answer(200, b'{"metadata": {}, "items": null}')

    assert look() == everybody([ALIVE, DEAD])
