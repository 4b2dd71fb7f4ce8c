"""The fixtures, as pytest finds them in a project of a user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEST = """
import random

import pytest
from celery import Celery
from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import NonDeterminism

app = Celery("bank")
entities = EntityCelery(app)


@entities.register
class Account(Entity):
    balance: int = 0

    @handler
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance


def test_a_deposit(entity_env):
    assert Account.ref("alice").deposit.ask(5) == 5


def test_stores_are_fresh(entity_env):
    assert Account.ref("alice").deposit.ask(5) == 5


@entities.workflow
def bet(flow):
    flow.sleep(random.random())


def test_a_body_that_is_different_each_time(workflow_env):
    bet.start()
    with pytest.raises(NonDeterminism):
        workflow_env.run()


def test_crashes(entity_crashes):
    assert entity_crashes(lambda env: Account.ref("alice").deposit.ask(5)) == 1
"""


def test_the_fixtures_are_there_without_an_import(tmp_path: Path) -> None:
    (tmp_path / "test_bank.py").write_text(TEST)

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bank.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("ENTITY_", "PYTEST_"))},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "4 passed" in ran.stdout
    assert not list(tmp_path.glob(".entitycelery*"))
