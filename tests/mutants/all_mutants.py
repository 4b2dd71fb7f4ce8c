"""Every mutant by its name."""

from __future__ import annotations

from tests.mutants.crash_mutants import CRASH_MUTANTS
from tests.mutants.key_mutants import KEY_MUTANTS
from tests.mutants.lock_mutants import LOCK_MUTANTS
from tests.mutants.turn_mutants import TURN_MUTANTS
from tests.mutants.wakeup_mutants import WAKEUP_MUTANTS

MUTANTS = {
    mutant.name: mutant
    for mutants in (KEY_MUTANTS, WAKEUP_MUTANTS, LOCK_MUTANTS, TURN_MUTANTS, CRASH_MUTANTS)
    for mutant in mutants
}
