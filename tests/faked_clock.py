"""Wall clocks that a test may set while the processes that go by them run: libfaketime, preloaded.

The monotonic clocks are left alone: no machine has ones that are stepped.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")
HOUR_S = 3600.0
_PYTHON = Path(__file__).with_name("python_of_faked")


def library() -> Path:
    """Where libfaketime is.

    Raises:
        RuntimeError: It is not there; says how to get it.
    """
    found = [path for pattern in LIBRARIES for path in Path("/").glob(pattern.lstrip("/"))]
    if not found:
        raise RuntimeError("libfaketime is not installed (apt-get install libfaketime)")
    return found[0]


class FakedClock:
    """The clock of all processes that are started with `variables`: so many seconds off the machine's."""

    def __init__(self, off_s: float = 0.0) -> None:
        self._library = library()
        self._folder = Path(tempfile.mkdtemp(prefix="entity-clock-"))
        # A server that does not run as we do reads it too.
        self._folder.chmod(0o755)
        self._file = self._folder / "clock"
        self.off_s = 0.0
        self.set(off_s)

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment of a process that goes by this clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Ages of files are compared with that clock too.
            "PYTHONPATH": str(_PYTHON),
        }

    def set(self, off_s: float) -> None:
        """Set it, for everybody who runs by it, at once."""
        draft = self._file.with_name("clock.draft")
        draft.write_text(f"{off_s:+f}\n")
        draft.chmod(0o644)
        os.replace(draft, self._file)
        self.off_s = off_s

    def close(self) -> None:
        """Forget it; nobody runs by it any more."""
        shutil.rmtree(self._folder)
        _remove_leftovers()

    def now_s(self) -> float:
        """What it shows."""
        return time.time() + self.off_s


def _remove_leftovers() -> None:
    """Remove the shared memory of processes that were killed, which libfaketime names after them."""
    for path in Path("/dev/shm").glob("*faketime_*"):
        pid = path.name.rpartition("_")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
