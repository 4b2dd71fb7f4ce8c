"""Whatever happens to runners, sessions and processes, at most one loop runs; and when all is quiet, one does."""

from __future__ import annotations

import pytest

from tests.unit.singleton_world import World

SEEDS = 40
QUIET_S = 40.0
BUSY_S = 120.0


def play(world: World, for_s: float, *, every_s: float | None = None) -> list[str]:
    """Let time go by, with something happening now and then, and count what runs."""
    said: list[str] = []
    ends_s = world.now_s + for_s
    next_s = world.now_s if every_s is not None else ends_s
    latest = 0
    while world.now_s < ends_s:
        if world.now_s >= next_s and every_s is not None:
            said.append(world.do_something())
            next_s = world.now_s + world.random.uniform(0.0, 2 * every_s)
        world.bury()
        world.go_on()
        running = world.running()
        fences = [process.fence or 0 for process in running]
        assert len(running) <= 1, f"{world.now_s:.2f}: {fences} run\n" + "\n".join(said[-10:])
        assert all(fence >= latest for fence in fences), f"{fences} after {latest}"
        latest = max([latest, *fences])
    return said


@pytest.mark.parametrize("watches", [True, False], ids=["watching", "stuck"])
@pytest.mark.parametrize("are_rows", [False, True], ids=["session locks", "rows"])
def test_never_two_run_and_one_does_in_the_end(are_rows: bool, watches: bool) -> None:
    for seed in range(SEEDS):
        world = World(seed, are_rows=are_rows, trouble=0.2, watches=watches)
        said = play(world, BUSY_S, every_s=world.random.choice([0.3, 1.0, 4.0]))

        world.trouble = 0.0
        play(world, QUIET_S)
        [before] = world.running()
        play(world, QUIET_S)

        assert world.running() == [before], f"seed {seed}\n" + "\n".join(said[-5:])


@pytest.mark.parametrize("are_rows", [False, True], ids=["session locks", "rows"])
def test_it_goes_where_its_shard_is(are_rows: bool) -> None:
    for seed in range(10):
        world = World(seed, are_rows=are_rows, trouble=0.0)
        play(world, 10.0)
        world.shard_at = "w2"

        play(world, QUIET_S)

        assert world.row.holder == "w2"
