"""A small API server of Kubernetes: lists pods over HTTPS, page by page, to whoever has the token."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "a-token-of-the-service-account"
NAMESPACE = "shop"


def pod(name: str, *, phase: str = "Running", labels: Mapping[str, str] | None = None, **conditions: str) -> Any:
    """A pod as the API server writes it; a condition is its status, or that and the instant of its last change."""
    found = []
    for kind, said in conditions.items():
        status, _, at = said.partition(" ")
        found.append({"type": kind, "status": status, "lastTransitionTime": at or "2030-01-01T12:00:00Z"})
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(labels or {}), "uid": f"uid-{name}"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "worker", "image": "shop:1"}]},
        "status": {"phase": phase, "podIP": "10.1.0.7", **({"conditions": found} if found else {})},
    }


Instead = Callable[["ApiServer", BaseHTTPRequestHandler], None]


class ApiServer:
    """Its pods, what it was asked, and what it does instead of answering, if anything."""

    def __init__(self) -> None:
        self.pods: list[Any] = []
        self.paths: list[str] = []
        self.largest_page = 1_000
        self.instead: Instead | None = None
        self.token = TOKEN
        self.port = 0
        self.released = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request as an API server would."""
        self.paths.append(request.path)
        if self.instead is not None:
            self.instead(self, request)
            return
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query, strict_parsing=True).items()}
        if request.headers["Authorization"] != f"Bearer {self.token}":
            reply(request, 401, failure(401, "Unauthorized"))
        elif unquote(url.path) != f"/api/v1/namespaces/{NAMESPACE}/pods":
            reply(request, 403, failure(403, f"pods is forbidden in {url.path}"))
        else:
            self._list(request, query)

    def _list(self, request: BaseHTTPRequestHandler, query: Mapping[str, str]) -> None:
        wanted = [item for item in self.pods if _selected(item, query.get("labelSelector"))]
        start = 0
        if "continue" in query:
            # The token says where, and for which list: another selector makes it void.
            at, selector = json.loads(query["continue"])
            if selector != query.get("labelSelector"):
                reply(request, 410, failure(410, "the provided continue parameter is too old"))
                return
            start = at
        end = start + min(int(query["limit"]), self.largest_page)
        metadata = {"resourceVersion": "7341"}
        if end < len(wanted):
            metadata["continue"] = json.dumps([end, query.get("labelSelector")])
        body = {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": wanted[start:end]}
        reply(request, 200, json.dumps(body).encode())


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def failure(code: int, message: str) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return json.dumps(status).encode()


def _selected(item: Any, selector: str | None) -> bool:
    pairs = [part.split("=") for part in selector.split(",")] if selector else []
    return all(item["metadata"]["labels"].get(name) == value for name, value in pairs)


@contextmanager
def api_server(certificate: Path, key: Path) -> Iterator[ApiServer]:
    """A server on a port of its own."""
    api = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            api.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up or does not trust us is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.released.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def make_authority(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A certificate authority that certified 127.0.0.1: its own certificate, the server's, and the server's key."""
    authority, authority_key = folder / f"{name}-ca.crt", folder / f"{name}-ca.key"
    certificate, key, request = folder / f"{name}.crt", folder / f"{name}.key", folder / f"{name}.csr"
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    for command in (
        [
            "req",
            "-x509",
            *new_key,
            "-keyout",
            authority_key,
            "-out",
            authority,
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            *usage,
        ],
        ["req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=kube-apiserver"],
        [
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            authority,
            "-CAkey",
            authority_key,
            "-CAcreateserial",
            "-out",
            certificate,
        ]
        + ["-days", "2", "-extfile", extensions],
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True, timeout=60)
    return authority, certificate, key
