"""Another machine, as far as the network knows: a namespace of its own, joined to ours by a wire that can be lost."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

T = TypeVar("T")
HERE, THERE = "10.213.77.1", "10.213.77.2"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class FarMachine:
    """What is started by way of it sees nothing of this machine but one address."""

    def __init__(self) -> None:
        self._name = f"entity-far-{os.getpid()}"
        near, far = f"efn{os.getpid()}", f"eff{os.getpid()}"
        self._near = near
        for command in (
            f"ip netns add {self._name}",
            f"ip link add {near} type veth peer name {far}",
            f"ip link set {far} netns {self._name}",
            f"ip addr add {HERE}/24 dev {near}",
            f"ip link set {near} up",
            f"ip -n {self._name} addr add {THERE}/24 dev {far}",
            f"ip -n {self._name} link set lo up",
            f"ip -n {self._name} link set {far} up",
        ):
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                self.close()
                pytest.skip(f"a network namespace is not permitted ({command}): {done.stderr.strip()}")

    def start(self, call: Callable[[], T]) -> T:
        """Call something there: processes that it starts are there too."""
        done: list[T] = []

        def enter_and_call() -> None:
            with open(f"/var/run/netns/{self._name}") as namespace:
                if _LIBC.setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            done.append(call())

        thread = threading.Thread(target=enter_and_call)
        thread.start()
        thread.join()
        return done[0]

    def lose(self) -> None:
        """From now on nothing comes from there, not even a refusal: as when the machine is gone."""
        command = f"ip -n {self._name} route add blackhole {HERE}/32"
        subprocess.run(command.split(), check=True)

    def find(self) -> None:
        """The wire is whole again."""
        subprocess.run(f"ip -n {self._name} route del blackhole {HERE}/32".split(), check=True)

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", self._near], capture_output=True)
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True)


@contextmanager
def far_machine() -> Iterator[FarMachine]:
    """A far machine, or the test is skipped, by name of what is not permitted."""
    machine = FarMachine()
    try:
        yield machine
    finally:
        machine.close()
