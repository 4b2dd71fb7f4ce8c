"""What a change of the number of shards per group would do, and whether anything is left of an earlier one."""

from __future__ import annotations

import msgspec

from entitycelery.placement import Runner


class GroupPlan(msgspec.Struct, frozen=True):
    """What is stored in one shard group, and how much of it belongs in another shard then."""

    group: str
    messages: int
    moving_messages: int
    dead_letters: int
    moving_dead_letters: int


class ReshardPlan(msgspec.Struct, frozen=True):
    """A look at the store before a reshard; after one, what it did."""

    before: int
    after: int
    groups: tuple[GroupPlan, ...]
    runners: tuple[Runner, ...]
    """Those that are there: while any is, nothing is changed."""
    had: int
    """So many shards the groups had at most whose queues may still be on the broker: `before`, or more where the
    queues of an earlier reshard are left."""
    queues: tuple[str, ...] = ()
    """The broker's queues that go."""

    @property
    def is_done(self) -> bool:
        """Whether the store has the number already."""
        return self.before == self.after

    @property
    def refusal(self) -> str | None:
        """Why it is not carried out now; None: it can be."""
        if not self.runners or self.is_done:
            return None
        names = ", ".join(f"{runner.address} (pid {runner.pid} on {runner.host})" for runner in self.runners)
        return f"the number of shards is changed while no worker hosts entities: stop {names} first"
