"""Boot a stock `celery worker` where only one extra is installed, and ask an entity something.

Usage: python .ci/boot_worker.py core|redis|gevent

Run it with the Python of a fresh environment. It works in a temporary directory, so what it imports is what
was installed, never the checkout. Exit code 0: the answer came in time and the worker stopped when told to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ANSWER_WITHIN_S = 30.0
STOP_WITHIN_S = 30.0
# Not one of the databases that the tests use: they take only empty ones.
REDIS_URL = os.environ.get("ENTITY_TEST_REDIS_URL", "redis://127.0.0.1:6379/8")

BROKERLESS = "app = Celery('boot')"
ON_REDIS = f"""
app = Celery('boot', broker={REDIS_URL!r})
app.conf.entity_database_url = 'sqlite:///' + str(Path(__file__).with_name('entities.db'))
"""

# extra -> how the app is made, options of the worker
EXTRAS = {
    "core": (BROKERLESS, []),
    "redis": (ON_REDIS, []),
    "gevent": (BROKERLESS, ["-P", "gevent"]),
}

MODULE = """
from pathlib import Path

from celery import Celery
from entitycelery import Entity, EntityCelery, handler

{app}
app.conf.entity_cluster = 'boot_{pid}'
entities = EntityCelery(app)


@entities.register
class Counter(Entity):
    count: int = 0

    @handler
    def add(self, amount: int) -> int:
        self.count += amount
        return self.count
"""


def main(extra: str) -> int:
    app, options = EXTRAS[extra]
    with tempfile.TemporaryDirectory(prefix=f"entity-boot-{extra}-") as folder:
        Path(folder, "bootapp.py").write_text(MODULE.format(app=app, pid=os.getpid()))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ENTITY_")}
        log = Path(folder, "worker.log")
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "bootapp",
                    "worker",
                    "-l",
                    "INFO",
                    "-c",
                    "2",
                    *options,
                ],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            failure = ask(folder, environment) or stop(worker)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        if failure:
            print(log.read_text(errors="replace")[-8000:])
            print(f"boot {extra}: FAILED: {failure}")
            return 1
    print(f"boot {extra}: ok")
    return 0


def ask(folder: str, environment: dict[str, str]) -> str | None:
    """Ask from a process of its own, as a user's program would; returns what went wrong."""
    program = "from bootapp import Counter; print('answer', Counter.ref('one').add.ask(42))"
    began_s = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {ANSWER_WITHIN_S} s"
    if done.stdout.split() != ["answer", "42"]:
        return f"expected 42, got {done.stdout!r}\n{done.stderr[-4000:]}"
    print(f"answered after {time.monotonic() - began_s:.1f} s, worker start included")
    return None


def stop(worker: subprocess.Popen[bytes]) -> str | None:
    """Stop the worker the polite way; returns what went wrong."""
    worker.send_signal(signal.SIGTERM)
    try:
        code = worker.wait(timeout=STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        return f"still running {STOP_WITHIN_S} s after SIGTERM"
    return f"exit code {code} after SIGTERM" if code else None


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        sys.exit(f"usage: boot_worker.py {'|'.join(EXTRAS)}")
    sys.exit(main(sys.argv[1]))
