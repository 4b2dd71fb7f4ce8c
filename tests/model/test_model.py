"""Scripts of sends, drains, crashes and time against every store, checked against plain dictionaries after each step.

A failure is printed as the shortest script that fails, together with its seed. `ENTITY_MODEL_SEED` repeats a run,
`ENTITY_MODEL_EXAMPLES` says how many scripts to try.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import EntityMachine

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

_EXAMPLES = 40
_STEPS = 30
_MANY_EXAMPLES = 400


def run_scripts(url: str, cluster: str, examples: int) -> None:
    """Try so many scripts.

    Raises:
        AssertionError: One of them failed; its shortest form is printed.
    """
    given = os.environ.get("ENTITY_MODEL_SEED") or os.environ.get("ENTITY_CHAOS_SEED")
    number = int(given) if given else random.SystemRandom().randrange(2**32)
    print(f"ENTITY_MODEL_SEED={number}")

    @seed(number)
    def machine() -> EntityMachine:
        return EntityMachine(url, cluster)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=int(os.environ.get("ENTITY_MODEL_EXAMPLES", examples)),
            stateful_step_count=_STEPS,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
            phases=[phase for phase in Phase if phase is not Phase.explain],
        ),
    )


def test_every_script_ends_as_the_model_says(any_url: str, cluster_name: str) -> None:
    run_scripts(any_url, cluster_name, _EXAMPLES)


@pytest.mark.chaos_long
def test_many_scripts_end_as_the_model_says(any_url: str, cluster_name: str) -> None:
    run_scripts(any_url, cluster_name, _MANY_EXAMPLES)
