"""`crash_everywhere`: what is inside the commit happens once, what is outside shows."""

from __future__ import annotations

from typing import Any

import pytest

from entitycelery.testing import EntityTestEnvironment, crash_everywhere
from tests.testing.shop import OUTSIDE


@pytest.fixture(autouse=True)
def nothing_outside() -> None:
    OUTSIDE.clear()


def test_a_test_of_what_commits_holds_at_every_crash(shop: Any) -> None:
    runs: list[int] = []

    def transfers(env: EntityTestEnvironment) -> None:
        runs.append(1)
        alice, bob = shop.Account.ref("alice"), shop.Account.ref("bob")
        alice.deposit.ask(100)
        alice.transfer.ask(30, to="bob")
        env.run()
        order = shop.Order.ref("o").checkout.send()
        env.run()
        shop.entities.signal(shop.Order.ref("o"), "payment").succeed(7)
        env.run()

        assert order.result() == "paid 7"
        assert (shop.entities.state(alice).balance, shop.entities.state(bob).balance) == (70, 30)
        assert shop.entities.state(shop.Account.ref("shop")).balance == 7

    commits = crash_everywhere(shop.entities, transfers)

    assert commits == 6
    assert len(runs) == 1 + 2 * commits


def test_what_is_done_outside_the_commit_is_found_out(shop: Any) -> None:
    def charges(env: EntityTestEnvironment) -> None:
        OUTSIDE.clear()
        shop.Account.ref("alice").charge_card.ask(5)

        assert shop.entities.state(shop.Account.ref("alice")).balance == 5
        assert len(OUTSIDE) == 1

    with pytest.raises(AssertionError) as failed:
        crash_everywhere(shop.entities, charges)

    assert failed.value.__notes__ == ["the process was gone before commit 1"]
    # The key that it had is the same each time.
    assert len(OUTSIDE) == 2
    assert len(set(OUTSIDE)) == 1
