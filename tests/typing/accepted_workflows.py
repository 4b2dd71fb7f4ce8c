# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Workflows as users write them: a checker knows what each call gives."""

from __future__ import annotations

from typing import assert_type

from entitycelery import AsyncWorkflow, Workflow, WorkflowRun, WorkflowStatus
from tests.typing.bank import Account, Order, entities


def charge(order: str, total: int) -> Order:
    raise NotImplementedError


async def fetch(url: str) -> bytes:
    return url.encode()


@entities.workflow
def child(flow: Workflow, amount: int) -> float:
    return flow.random()


@entities.workflow(name="check-out")
def checkout(flow: Workflow, order: str, total: int = 5) -> str:
    assert_type(flow.step(charge, order, total), Order)
    assert_type(flow.options(timeout_s=5).wait("approved", bool), bool)
    assert_type(flow.ask(Account.ref("shop").deposit, total), int)
    assert_type(flow.options(parent_close_policy="abandon").child(child, 5), float)
    assert_type(flow.gather(lambda: flow.step(charge, order, 1), lambda: charge(order, 1)), list[Order])
    assert_type(flow.race(lambda: 1, lambda: flow.ask(Account.ref("shop").deposit, total)), tuple[int, int])
    flow.options(autoretry_for=(OSError,), max_retries=None).step(charge, order, total)
    flow.send(Account.ref("shop").deposit, total)
    flow.compensate(charge, order, total)
    flow.sleep(5)
    return order


@entities.workflow
async def asynchronous(flow: AsyncWorkflow, order: str) -> int:
    assert_type(await flow.step(fetch, "url"), bytes)
    assert_type(await flow.step(charge, order, 5), Order)
    assert_type(await flow.options(timeout_s=5).wait("approved", bool), bool)
    assert_type(await flow.gather(flow.step(fetch, "a"), flow.step(fetch, "b")), list[bytes])
    assert_type(await flow.race(flow.sleep(5), flow.sleep(6)), tuple[int, None])
    flow.compensate(fetch, "url")
    await flow.sleep(5)
    return await flow.child(asynchronous, order)


run = checkout.options(key="o").start("tea", total=6)
assert_type(run, WorkflowRun[str])
assert_type(run.result(timeout_s=5), str)
assert_type(run.status(), WorkflowStatus)
assert_type(run.retry(3).result(), str)
assert_type(asynchronous.start("tea").result(), int)
assert_type(checkout.ref("o"), WorkflowRun[str])
