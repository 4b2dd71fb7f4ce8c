# pyright: basic, reportUnnecessaryTypeIgnoreComment=true, reportUnusedExpression=false, reportUnusedCoroutine=false
"""Wrong calls: every line is an error to mypy and to pyright, else its mark is one too many and that is an error."""

from __future__ import annotations

from tests.typing.bank import Account, Audit, alice, entities

# A wrong type, a missing and an extra argument, of every verb.
alice.deposit.ask("5")  # type: ignore[arg-type]
alice.deposit.send("5")  # type: ignore[arg-type]
alice.deposit.delay("5")  # type: ignore[arg-type]
alice.deposit.prepare("5")  # type: ignore[arg-type]
alice.deposit.ask()  # type: ignore[call-arg]
alice.deposit.send()  # type: ignore[call-arg]
alice.deposit.delay()  # type: ignore[call-arg]
alice.deposit.prepare()  # type: ignore[call-arg]
alice.deposit.ask(5, 6)  # type: ignore[call-arg]
alice.deposit.send(5, note="x")  # type: ignore[call-arg]
alice.close.ask(5)  # type: ignore[call-arg]
alice.transfer.ask(5, to=6)  # type: ignore[arg-type]
alice.transfer.ask(5, "bob", "note")  # type: ignore[call-arg]
alice.fetch.ask([1])  # type: ignore[list-item]
Audit.ref("a").note.ask(5)  # type: ignore[arg-type]

# The options of a call do not go to the verb, and the arguments stay typed behind .options().
alice.deposit.send(5, key="k")  # type: ignore[call-arg]
alice.deposit.options(key="k").send("5")  # type: ignore[arg-type]
alice.deposit.options(key="k").send()  # type: ignore[call-arg]
alice.deposit.options(delay_s=1).options(key="k").ask("5")  # type: ignore[arg-type]

# Unknown and mistyped options.
alice.deposit.options(delay=5)  # type: ignore[call-arg]
alice.deposit.options(countdown=5)  # type: ignore[call-arg]
alice.deposit.options(key=5)  # type: ignore[arg-type]
alice.deposit.options(delay_s="5")  # type: ignore[arg-type]
alice.deposit.options(key="k", unique="never")  # type: ignore[arg-type]
alice.deposit.options(deliver_at=5)  # type: ignore[arg-type]
alice.deposit.options("key")  # type: ignore[call-arg]

# What is not there.
alice.withdraw.ask(5)  # type: ignore[attr-defined]
alice.deposit.call(5)  # type: ignore[attr-defined]
Account.ref(1.5)  # type: ignore[arg-type]
Account.ref()  # type: ignore[call-arg]

# Queries take their own arguments.
alice.statement("yesterday")  # type: ignore[arg-type]
alice.statement(until=None)  # type: ignore[call-arg]

# send_many takes prepared calls, not sent ones.
entities.send_many([alice.deposit.send(5)])  # type: ignore[list-item]
entities.send_many([5])  # type: ignore[list-item]


async def asynchronous() -> None:
    await alice.deposit.aask("5")  # type: ignore[arg-type]
    await alice.deposit.asend()  # type: ignore[call-arg]
    await alice.deposit.asend(5, 6)  # type: ignore[call-arg]
    await alice.fetch.aask("a", "b")  # type: ignore[call-arg]


# Signals take handlers, and names.
by_hand = Account()
by_hand.expect("approval", then=5)  # type: ignore[arg-type]
by_hand.expect("approval")  # type: ignore[call-arg]
by_hand.expect(5, then=alice.deposit)  # type: ignore[arg-type]
by_hand.expect("approval", then=alice.deposit, timeout_s="5")  # type: ignore[arg-type]
entities.signal(alice, 5)  # type: ignore[arg-type]
