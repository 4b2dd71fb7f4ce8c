"""Every mutant by its name."""

from __future__ import annotations

from tests.mutants.crash_mutants import CRASH_MUTANTS
from tests.mutants.due_mutants import DUE_MUTANTS
from tests.mutants.key_mutants import KEY_MUTANTS
from tests.mutants.lease_mutants import LEASE_MUTANTS
from tests.mutants.lock_mutants import LOCK_MUTANTS
from tests.mutants.signal_mutants import SIGNAL_MUTANTS
from tests.mutants.singleton_mutants import SINGLETON_MUTANTS
from tests.mutants.time_mutants import TIME_MUTANTS
from tests.mutants.turn_mutants import TURN_MUTANTS
from tests.mutants.unique_mutants import UNIQUE_MUTANTS
from tests.mutants.wakeup_mutants import WAKEUP_MUTANTS
from tests.mutants.workflow_mutants import WORKFLOW_MUTANTS

MUTANTS = {
    mutant.name: mutant
    for mutants in (
        *(KEY_MUTANTS, UNIQUE_MUTANTS, WAKEUP_MUTANTS, DUE_MUTANTS, TIME_MUTANTS),
        *(
            LOCK_MUTANTS,
            LEASE_MUTANTS,
            SINGLETON_MUTANTS,
            SIGNAL_MUTANTS,
            WORKFLOW_MUTANTS,
            TURN_MUTANTS,
            CRASH_MUTANTS,
        ),
    )
    for mutant in mutants
}
