# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Calls of workflows that a checker rejects."""

from __future__ import annotations

from entitycelery import Workflow
from tests.typing.accepted_workflows import charge, checkout
from tests.typing.bank import Account, entities


@entities.workflow
def wrong(flow: Workflow, order: str) -> None:
    flow.step(charge, order)  # type: ignore[call-arg]
    flow.step(charge, order, "5")  # type: ignore[arg-type]
    flow.ask(Account.ref("shop").deposit, "5")  # type: ignore[arg-type]
    flow.child(checkout, 5)  # type: ignore[arg-type]
    flow.gather(5)  # type: ignore[arg-type]
    flow.options(parent_close_policy="kill")  # type: ignore[arg-type]
    flow.sleep("5")  # type: ignore[arg-type]


checkout.start()  # type: ignore[call-arg]
checkout.start(5)  # type: ignore[arg-type]
checkout.options().start("tea")  # type: ignore[call-arg]
