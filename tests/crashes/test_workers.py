"""Workers die at every point of a drain in turn; what they were doing is done once, in order, and soon."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.crashes.campaigns import Campaign
from tests.crashes.sites import ALLOWANCE_S, REFRESH_S, open_site
from tests.services import Services

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

STORES = ["postgresql", "sqlite"]
NAMED = (
    "look after beginning",
    "look after release",
    "look after forsake",
    "Locks.claim: ",
    "Mailboxes.read: ",
    "States.read: ",
    "attend, ",
    "call write",
    "the user's SQL",
    "open_turn, ",
    "commit_turn, Replies.write: ",
    "commit_turn, OwnTransaction.commit: COMMIT",
    "commit, Commits.check: ",
    "commit, Commits.commit: COMMIT",
    "commit, Commits._retry_later: ",
    "commit, SignalRows.complete: ",
    "commit, Commits.write: UPDATE message",
    "commit, Commits._bury_dead: ",
    "commit, Messages._append_keyed: INSERT message",
    "keep_only, InFlight.note: ",
    "release, ",
    "forsake, ",
    "ring",
    "end, ",
    "InFlight._notes: ",
    "InFlight.count_crash: UPDATE message",
)


# Where a batch is tried in one statement first.
NAMED_ON = {
    "postgresql": ("commit, Commits.commit_plain: BEGIN", "commit, Commits.commit_plain: COMMIT", "pg_notify"),
    "sqlite": ("RowLocks.claim: DELETE lock",),
}


def assert_all_died(campaign: Campaign, points: list[str], store: str) -> None:
    """Nearly everywhere, and certainly at those points whose names say what a drain is."""
    named = (*NAMED, *NAMED_ON[store])
    unnamed = [name for name in named for which in ("before", "after") if not _is_among(which, name, points)]
    assert unnamed == []
    # Some points are passed only when two drains meet in a certain way.
    assert len(campaign.missed) <= len(points) // 10, campaign.missed
    died = set(points) - set(campaign.missed)
    assert [name for name in named if not _is_among("", name, died)] == []


def _is_among(which: str, name: str, points: list[str] | set[str]) -> bool:
    return any(point.startswith(which) and name in point for point in points)


def assert_served_soon(campaign: Campaign) -> None:
    """Each round was over soon after its last death; the middle one tells what is usual on this machine."""
    assert max(campaign.waits_s) < 2 * REFRESH_S + ALLOWANCE_S
    assert statistics.median(campaign.waits_s) < 2 * REFRESH_S + ALLOWANCE_S / 3


@pytest.mark.parametrize(
    ("store", "every"),
    [("postgresql", 1), ("sqlite", 7), pytest.param("sqlite", 1, marks=pytest.mark.chaos_long)],
)
def test_death_of_a_pool_process_at_any_point_loses_doubles_and_delays_nothing(
    services: Services, tmp_path: Path, store: str, every: int
) -> None:
    with open_site(services, tmp_path / "site", store) as site:
        campaign = Campaign(site, site.worker())
        points = campaign.record()

        campaign.die_at(points[::every])

        if every == 1:
            assert_all_died(campaign, points, store)
        assert_served_soon(campaign)


@pytest.mark.parametrize(
    ("store", "every"),
    [
        ("postgresql", 20),
        pytest.param("postgresql", 1, marks=pytest.mark.chaos_long),
        pytest.param("sqlite", 3, marks=pytest.mark.chaos_long),
    ],
)
def test_death_of_a_whole_worker_at_any_point_loses_doubles_and_delays_nothing(
    services: Services, tmp_path: Path, store: str, every: int
) -> None:
    with open_site(services, tmp_path / "site", store) as site:
        campaign = Campaign(site, site.worker(with_its_tree=True), deaths_in_a_round=1)
        points = campaign.record(recovery=every == 1)

        campaign.die_at(points[::every])

        assert_served_soon(campaign)
