"""Brokers and databases of our own, which a test may stop, freeze, fill and kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import kombu
import psycopg2
import pytest
import redis

from tests.embedded_postgres import LIBC, PR_SET_PDEATHSIG, EmbeddedPostgres
from tests.waiting import eventually

RABBITMQ_HOMES = Path("/usr/lib/rabbitmq/lib")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class OwnRedis:
    """A Redis that keeps nothing on disk: a restart loses all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = _started(command, self._folder)
        eventually(lambda: self.client().ping())

    def stop(self) -> None:
        """Kill it; whoever connects is refused until the next start."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It takes connections and bytes, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        self.client().flushall()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self._port)


class OwnRabbitMQ:
    """A RabbitMQ node with its own ports and folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._distribution_port = free_port(), free_port()
        self._node = f"chaos{self._port}@localhost"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        homes = sorted(RABBITMQ_HOMES.glob("rabbitmq_server-*/sbin"))
        if not homes:
            pytest.skip("no RabbitMQ on this machine")
        self._binaries = homes[-1]

    def start(self) -> None:
        self._process = _started([str(self._binaries / "rabbitmq-server")], self._folder, self._environment())
        eventually(self._answers, timeout_s=90, every_s=0.2)

    def stop(self) -> None:
        """Kill the node with all that the start script started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def flush(self) -> None:
        """Forget every queue and what is in it."""
        for command in ("stop_app", "force_reset", "start_app"):
            control = [str(self._binaries / "rabbitmqctl"), "-n", self._node, command]
            subprocess.run(control, env=self._environment(), check=True, capture_output=True, timeout=120)
        eventually(self._answers, timeout_s=90, every_s=0.2)

    def _answers(self) -> bool:
        with kombu.Connection(self.url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
        return True

    def _environment(self) -> dict[str, str]:
        self._folder.mkdir(exist_ok=True)
        plugins = self._folder / "enabled_plugins"
        plugins.write_text("[].")
        return {
            **os.environ,
            "HOME": str(self._folder),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            # What the system's own node is configured with is not ours.
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none.conf"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "none"),
        }


def own_postgres(home: Path | None = None) -> tuple[EmbeddedPostgres, str]:
    """A PostgreSQL of our own and its URL, or the test is skipped."""
    server = EmbeddedPostgres(home)
    try:
        return server, server.start()
    except RuntimeError as exc:
        server.stop()
        pytest.skip(f"PostgreSQL of our own: {exc}")


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements in autocommit mode; the rows of the last."""
    connection = psycopg2.connect(url, connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextmanager
def small_filesystem(megabytes: int) -> Iterator[Path]:
    """A file system of its own that is soon full, or the test is skipped."""
    # Not below pytest's own directories, which an unprivileged server may not enter.
    folder = Path(tempfile.mkdtemp(prefix="entity-disk-"))
    folder.chmod(0o755)
    options = f"size={megabytes}m,mode=0777"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _started(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_owner,
        )


def _die_with_owner() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
