"""A PgBouncer of our own in front of a PostgreSQL server, configured as docs/how-to/pgbouncer.md says.

Owns the process and its folder; it dies with its owner, however the owner dies.
"""

from __future__ import annotations

import configparser
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tests.docs.blocks import ROOT, blocks_of
from tests.waiting import eventually

PAGE = Path("docs/how-to/pgbouncer.md")
# It refuses to run as root.
UNPRIVILEGED = 65534
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class PgBouncer:
    """One pooler on a free port of 127.0.0.1, for every database of one server; whoever comes is let in."""

    def __init__(self, server_url: str, **settings: object) -> None:
        """`settings` of its section `pgbouncer` go before those of the page."""
        self._server = urlsplit(server_url)
        self._settings = {name: str(value) for name, value in settings.items()}
        self._home = Path(tempfile.mkdtemp(prefix="entity-pgbouncer-"))
        self._binary = ""
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start, and return the server's URL by way of it.

        Raises:
            RuntimeError: There is no pgbouncer, or it does not start; says why.
        """
        binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if binary is None:
            raise RuntimeError("pgbouncer is not installed (apt-get install pgbouncer)")
        self._binary = binary
        self._port = _free_port()
        self._write_configuration()
        self.launch()
        return self.url_of(urlunsplit(self._server))

    def launch(self) -> None:
        """Start it on its port and wait until it accepts connections.

        Raises:
            RuntimeError: It does not start; says why.
        """
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._home.chmod(0o755)
            as_user = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, str(self._home / "pgbouncer.ini")],
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_owner,
                **as_user,
            )
        process = self._process
        eventually(lambda: process.poll() is not None or self._answers(), timeout_s=10)
        if process.poll() is not None:
            raise RuntimeError(f"pgbouncer stopped: {(self._home / 'log').read_text()[-2000:]}")

    def url_of(self, url: str) -> str:
        """The URL of a database of the server, by way of this pooler."""
        parts = urlsplit(url)
        user = parts.username or "postgres"
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    def kill(self) -> None:
        """End it at once, with every connection that goes through it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop it at once and remove its files. Harmless when it never started."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def _write_configuration(self) -> None:
        server = self._server
        user = unquote(server.username or "postgres")
        upstream = f"host={server.hostname} port={server.port or 5432} user={user}"
        if server.password:
            upstream += f" password={unquote(server.password)}"
        users = self._home / "users.txt"
        users.write_text(f'"{user}" ""\n')
        written = configuration_of_page()
        written["databases"] = {"*": upstream}
        written["pgbouncer"].update(
            listen_port=str(self._port), auth_type="trust", auth_file=str(users), unix_socket_dir="", **self._settings
        )
        with (self._home / "pgbouncer.ini").open("w") as file:
            written.write(file)

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True


def configuration_of_page() -> configparser.ConfigParser:
    """What the page shows."""
    [shown] = [block.text for block in blocks_of(PAGE) if block.first_line.endswith("pgbouncer.ini")]
    read = configparser.ConfigParser(interpolation=None)
    read.read_string(shown, source=str(ROOT / PAGE))
    return read


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _die_with_owner() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
