# pyright: basic, reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false, reportUnusedCoroutine=false
"""Results and states used as something else: every line is an error to mypy and to pyright."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from entitycelery import AsyncResult, Entity, Sent, handler, shared_entity
from tests.typing.bank import Account, Audit, alice, entities

# ask's result as another type.
asked: str = alice.deposit.ask(5)  # type: ignore[assignment]
order: int = alice.transfer.ask(5, "bob")  # type: ignore[assignment]
order_id = alice.transfer.ask(5, "bob").id  # type: ignore[union-attr]
alice.deposit.ask(5).upper()  # type: ignore[attr-defined]

# Sent[R] and its result.
sent: Sent[str] = alice.deposit.send(5)  # type: ignore[assignment]
result: str = alice.deposit.send(5).result()  # type: ignore[assignment]
alice.deposit.send(5).result(3)  # type: ignore[call-arg]
alice.deposit.send(5).result(timeout=3)  # type: ignore[call-arg]
behind_options: Sent[str] = alice.deposit.options(key="k").send(5)  # type: ignore[assignment]

# Celery's handle is typed too.
handle: AsyncResult[str] = alice.deposit.delay(5)  # type: ignore[assignment]
got: str = alice.deposit.delay(5).get()  # type: ignore[assignment]
later: str = alice.deposit.apply_async((5,)).get()  # type: ignore[assignment]

# An async handler's result is no coroutine.
pending: Coroutine[Any, Any, dict[str, int]] = alice.fetch.ask(["a"])  # type: ignore[assignment]
fetched: str = alice.fetch.ask(["a"])  # type: ignore[assignment]
fetched_later: str = alice.fetch_one.send("a").result()  # type: ignore[assignment]

# Queries.
lines: list[str] = alice.statement()  # type: ignore[assignment]

# State is typed, read or written, and entities.state(ref) is the class.
balance: str = entities.state(alice).balance  # type: ignore[assignment]
other: Audit = entities.state(alice)  # type: ignore[assignment]
entities.state(alice).balanse  # type: ignore[attr-defined]
Account(balance="5")  # type: ignore[arg-type]
Account(balanse=5)  # type: ignore[call-arg]
Account(5)  # type: ignore[call-arg]
Account().balance = "5"  # type: ignore[assignment]
Account().deposit("5")  # type: ignore[arg-type]


@shared_entity
class Strict(Entity):
    n: int = "five"  # type: ignore[assignment]

    @handler
    def work(self, amount: int) -> int:
        self.n = "six"  # type: ignore[assignment]
        self.turn.nothing  # type: ignore[attr-defined]
        self.work.send("5")  # type: ignore[arg-type]
        return "seven"  # type: ignore[return-value]

    @handler(retries=5)  # type: ignore[call-overload, untyped-decorator]
    def unknown_option(self) -> None: ...


@entities.register(nome="x")  # type: ignore[call-overload]
class Misnamed(Entity): ...


@entities.register(on_failure="retry")  # type: ignore[call-overload]
class Mistaken(Entity): ...


async def asked_later() -> str:
    alice.deposit.aask(5).upper()  # type: ignore[attr-defined]
    return await alice.deposit.aask(5)  # type: ignore[return-value]


async def sent_later() -> Sent[str]:
    return await alice.deposit.asend(5)  # type: ignore[return-value]


async def awaited() -> str:
    return await (await alice.deposit.asend(5)).aresult()  # type: ignore[return-value]
