"""The demo's checker accepts ledgers that are right, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy

import msgspec
import pytest

from entitycelery.cli.demo_check import OPENING_BALANCE, Entry, Ledger, Transfer, Verdict, check, plan

ACCOUNTS = [f"account-{n}" for n in range(10)]
TRANSFERS = plan(200, ACCOUNTS, 4, random.Random(17))

Ledgers = dict[str, Ledger]


def applied(transfers: list[Transfer]) -> Ledgers:
    """The ledgers of a bank that does it right: debits in the order of sending, credits whenever."""
    ledgers: Ledgers = {}

    def ledger(account: str) -> Ledger:
        return ledgers.setdefault(account, Ledger(debits=[], credits=[], last_sequence={}))

    for t in transfers:
        payer, payee = ledger(t.source), ledger(t.target)
        payer.balance -= t.amount
        payer.debits.append(Entry(t.number, t.amount, t.sender, t.sequence))
        payer.last_sequence[t.sender] = t.sequence
        payee.balance += t.amount
        payee.credits.append(Entry(t.number, t.amount, t.source, len(payer.debits)))
        payee.last_sequence[t.source] = len(payer.debits)
    return ledgers


@pytest.fixture
def ledgers() -> Ledgers:
    return applied(TRANSFERS)


def verdict_of(ledgers: Ledgers) -> Verdict:
    return check(TRANSFERS, ledgers, ACCOUNTS)


def test_ledgers_that_are_right_are_accepted(ledgers: Ledgers) -> None:
    verdict = verdict_of(ledgers)

    assert verdict.ok
    assert (verdict.sent, verdict.applied, verdict.lost, verdict.doubled) == (200, 200, 0, 0)
    assert verdict.money_before == verdict.money_after == OPENING_BALANCE * len(ACCOUNTS)


def test_the_order_of_different_senders_is_free(ledgers: Ledgers) -> None:
    for ledger in ledgers.values():
        ledger.credits.sort(key=lambda entry: (entry.sender, entry.sequence))

    assert verdict_of(ledgers).ok


def test_an_account_without_any_state_holds_its_opening_balance() -> None:
    verdict = check(TRANSFERS, applied(TRANSFERS), [*ACCOUNTS, "never-used"])

    assert verdict.ok
    assert verdict.money_before == OPENING_BALANCE * (len(ACCOUNTS) + 1)


def test_nothing_sent_proves_nothing() -> None:
    assert not check([], {}, ACCOUNTS).ok


def test_nothing_applied_is_all_lost() -> None:
    verdict = verdict_of({})

    assert not verdict.ok
    assert (verdict.applied, verdict.lost, verdict.missing) == (0, 200, tuple(range(200)))


def pays(ledgers: Ledgers) -> Ledger:
    return ledgers[TRANSFERS[20].source]


def receives(ledgers: Ledgers) -> Ledger:
    return ledgers[TRANSFERS[20].target]


def replaced(entries: list[Entry], place: int, **changes: object) -> None:
    entries[place] = msgspec.structs.replace(entries[place], **changes)


def lose_a_debit(ledgers: Ledgers) -> None:
    pays(ledgers).balance += pays(ledgers).debits.pop().amount


def lose_a_credit(ledgers: Ledgers) -> None:
    receives(ledgers).balance -= receives(ledgers).credits.pop(3).amount


def lose_both_sides_of_the_last(ledgers: Ledgers) -> None:
    last = TRANSFERS[-1]
    ledgers[last.source].debits.pop()
    ledgers[last.source].balance += last.amount
    ledgers[last.target].credits.pop()
    ledgers[last.target].balance -= last.amount


def lose_an_account(ledgers: Ledgers) -> None:
    del ledgers[TRANSFERS[20].source]


def double_a_debit(ledgers: Ledgers) -> None:
    ledger = pays(ledgers)
    ledger.debits.append(ledger.debits[-1])
    ledger.balance -= ledger.debits[-1].amount


def double_a_credit(ledgers: Ledgers) -> None:
    ledger = receives(ledgers)
    ledger.credits.append(ledger.credits[-1])
    ledger.balance += ledger.credits[-1].amount


def lose_one_and_double_another_of_the_same_amount(ledgers: Ledgers) -> None:
    credits = receives(ledgers).credits
    replaced(credits, 0, amount=credits[1].amount)
    receives(ledgers).balance = OPENING_BALANCE
    credits[0] = credits[1]
    receives(ledgers).balance += sum(e.amount for e in credits) - sum(e.amount for e in receives(ledgers).debits)


def alter_an_amount(ledgers: Ledgers) -> None:
    replaced(pays(ledgers).debits, 0, amount=pays(ledgers).debits[0].amount + 1)


def alter_an_amount_on_both_sides_and_in_both_balances(ledgers: Ledgers) -> None:
    first = TRANSFERS[0]
    replaced(ledgers[first.source].debits, 0, amount=first.amount + 1)
    ledgers[first.source].balance -= 1
    place = [e.number for e in ledgers[first.target].credits].index(first.number)
    replaced(ledgers[first.target].credits, place, amount=first.amount + 1)
    ledgers[first.target].balance += 1


def swap_debits(ledgers: Ledgers) -> None:
    debits = pays(ledgers).debits
    first = debits[0]
    place = next(n for n, e in enumerate(debits[1:], start=1) if e.sender == first.sender)
    debits[0], debits[place] = debits[place], debits[0]


def swap_credits(ledgers: Ledgers) -> None:
    for ledger in ledgers.values():
        for n, one in enumerate(ledger.credits):
            for m, other in enumerate(ledger.credits[:n]):
                if one.sender == other.sender:
                    ledger.credits[n], ledger.credits[m] = other, one
                    return
    raise AssertionError("no account got two transfers from one other")


def credit_the_wrong_account(ledgers: Ledgers) -> None:
    entry = receives(ledgers).credits.pop()
    receives(ledgers).balance -= entry.amount
    wrong = next(a for a in ACCOUNTS if a not in (TRANSFERS[20].target, TRANSFERS[20].source, entry.sender))
    ledgers[wrong].credits.append(entry)
    ledgers[wrong].balance += entry.amount


def name_another_sender(ledgers: Ledgers) -> None:
    replaced(pays(ledgers).debits, 0, sender="sender-9")


def name_another_place(ledgers: Ledgers) -> None:
    replaced(receives(ledgers).credits, -1, sequence=receives(ledgers).credits[-1].sequence + 1)


def apply_a_transfer_that_nobody_sent(ledgers: Ledgers) -> None:
    payer, payee = ledgers[ACCOUNTS[0]], ledgers[ACCOUNTS[1]]
    payer.debits.append(Entry(999, 1, "sender-0", 999))
    payer.last_sequence["sender-0"] = 999
    payer.balance -= 1
    payee.credits.append(Entry(999, 1, ACCOUNTS[0], len(payer.debits)))
    payee.last_sequence[ACCOUNTS[0]] = len(payer.debits)
    payee.balance += 1


def move_money_between_balances(ledgers: Ledgers) -> None:
    ledgers[ACCOUNTS[0]].balance -= 1
    ledgers[ACCOUNTS[1]].balance += 1


def make_money(ledgers: Ledgers) -> None:
    ledgers[ACCOUNTS[0]].balance += 1


def open_an_account_with_money(ledgers: Ledgers) -> None:
    ledgers["stranger"] = Ledger(balance=OPENING_BALANCE + 5)


def forget_the_last_sequence(ledgers: Ledgers) -> None:
    pays(ledgers).last_sequence.popitem()


FAULTS: list[tuple[Callable[[Ledgers], None], str]] = [
    (lose_a_debit, "lost"),
    (lose_a_credit, "lost"),
    (lose_both_sides_of_the_last, "lost"),
    (lose_an_account, "lost"),
    (double_a_debit, "doubled"),
    (double_a_credit, "doubled"),
    (lose_one_and_double_another_of_the_same_amount, "lost"),
    (lose_one_and_double_another_of_the_same_amount, "doubled"),
    (alter_an_amount, "strange"),
    (alter_an_amount_on_both_sides_and_in_both_balances, "strange"),
    (swap_debits, "out_of_order"),
    (swap_credits, "out_of_order"),
    (credit_the_wrong_account, "strange"),
    (name_another_sender, "strange"),
    (name_another_place, "strange"),
    (apply_a_transfer_that_nobody_sent, "strange"),
    (move_money_between_balances, "unbalanced"),
    (make_money, "unbalanced"),
    (open_an_account_with_money, "unbalanced"),
    (forget_the_last_sequence, "out_of_order"),
]


@pytest.mark.parametrize(("spoil", "count"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_fault_is_found_and_called_by_its_name(
    ledgers: Ledgers, spoil: Callable[[Ledgers], None], count: str
) -> None:
    spoil(ledgers)

    verdict = verdict_of(ledgers)

    assert not verdict.ok
    assert getattr(verdict, count) > 0


def test_any_single_entry_that_is_changed_is_noticed(ledgers: Ledgers) -> None:
    rng = random.Random(3)
    for _ in range(300):
        spoiled = deepcopy(ledgers)
        ledger = spoiled[rng.choice(ACCOUNTS)]
        entries = rng.choice([ledger.debits, ledger.credits])
        place = rng.randrange(len(entries))
        field = rng.choice(["number", "amount", "sequence"])
        replaced(entries, place, **{field: getattr(entries[place], field) + rng.choice([-1, 1])})

        assert not verdict_of(spoiled).ok


def test_the_missing_are_named(ledgers: Ledgers) -> None:
    lose_both_sides_of_the_last(ledgers)

    assert verdict_of(ledgers).missing == (199,)


def test_a_plan_is_fair_and_pays_nobody_to_himself() -> None:
    planned = plan(400, ACCOUNTS, 4, random.Random())

    assert [t.number for t in planned] == list(range(400))
    assert {sum(t.source == account for t in planned) for account in ACCOUNTS} == {40}
    assert all(t.source != t.target and t.amount > 0 for t in planned)
    for sender in {t.sender for t in planned}:
        assert [t.sequence for t in planned if t.sender == sender] == list(range(1, 101))


def test_no_account_of_a_plan_can_run_out_of_money() -> None:
    planned = plan(5_000, [f"a{n}" for n in range(200)], 4, random.Random())

    most = max(sum(t.amount for t in planned if t.source == account) for account in {t.source for t in planned})
    assert most <= OPENING_BALANCE
