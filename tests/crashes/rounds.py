"""One round of load: several senders write to some ledgers in every way there is; then each entry is looked at."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from entitycelery.message import Status
from tests.crashes.sites import Site
from tests.storage.support import query

SENDERS = ("ann", "bob", "cid")
ASKER = "dee"
KINDS = (
    "write",
    "write_and_copy",
    "pay",
    "write_slowly",
    "refuse",
    "write_at_second_try",
    "contradict",
    "give_up",
    "write_and_copy_once",
    "write_asynchronously",
    "write_when_told",
)
COPIED = ("write_and_copy", "write_and_copy_once", "pay")
LEFT_NOTHING = {"refuse": Status.FAILED, "contradict": Status.FAILED, "give_up": Status.DEAD}

_PAID = "SELECT ledger, sender, number FROM paid WHERE ledger IN ({names}) ORDER BY ledger, sender, number"

Entries = dict[tuple[str, str], list[int]]


class Round:
    """The mail of one round, to ledgers of its own, so that what a round left is known for certain."""

    def __init__(self, site: Site, number: int) -> None:
        self._site = site
        self._mixed = [f"{number}-a", f"{number}-b"]
        self._plain = [f"{number}-p{n}" for n in range(6)]
        self._expected: Entries = defaultdict(list)
        self._paid: list[tuple[str, str, int]] = []
        self._statuses: dict[str, Status] = {}

    def send(self) -> None:
        """Send it all, every sender at the same time."""
        with ThreadPoolExecutor(len(SENDERS) + 1) as pool:
            sending = [pool.submit(self._send_all, sender) for sender in SENDERS]
            for party in [pool.submit(self._ask), *sending]:
                party.result()

    def _ask(self) -> None:
        for number, name in enumerate(self._plain[:2]):
            self._expected[name, ASKER].append(number)
            assert self._site.Ledger.ref(name).write.ask(ASKER, number) == number

    def _send_all(self, sender: str) -> None:
        # Each sender begins with another kind, so that they meet in many ways.
        first = SENDERS.index(sender) * 3
        kinds = [KINDS[(first + n) % len(KINDS)] for n in range(len(KINDS))]
        for number, kind in enumerate(kinds):
            for ledger in self._mixed:
                if kind != "write_slowly" or ledger == self._mixed[0]:
                    self._send(ledger, kind, sender, number)
        self._send_together(sender)

    def _send(self, ledger: str, kind: str, sender: str, number: int) -> None:
        call = getattr(self._site.Ledger.ref(ledger), kind)
        if number % 2:
            # With a key it may be sent twice.
            call = call.options(key=f"{sender}-{number}")
            call.send(sender, number)
        sent = call.send(sender, number)
        self._statuses[sent.id] = LEFT_NOTHING.get(kind, Status.DONE)
        if kind not in LEFT_NOTHING:
            self._expected[ledger, sender].append(number)
        if kind in COPIED:
            self._expected[f"copy of {ledger}", sender].append(number)
        if kind == "write_when_told":
            self._tell(ledger, sender, number)
        if kind == "pay":
            self._paid.append((ledger, sender, number))

    def _tell(self, ledger: str, sender: str, number: int) -> None:
        self._expected[f"told of {ledger}", sender].append(number)
        if number % 2:
            assert self._site.entities.signal(f"Ledger/{ledger}", sender).succeed(number) != "over"
        else:
            told = self._site.Ledger.ref(f"teller of {ledger}").tell.send(ledger, sender, number)
            self._statuses[told.id] = Status.DONE

    def _send_together(self, sender: str) -> None:
        ledgers = [self._site.Ledger.ref(name) for name in self._plain]
        first = [ledger.write_and_copy.prepare(sender, 0) for ledger in ledgers]
        calls = [*first, *(ledger.write.prepare(sender, 1) for ledger in ledgers)]
        for sent in self._site.entities.send_many(calls):
            self._statuses[sent.id] = Status.DONE
        for name in self._plain:
            self._expected[name, sender] = [0, 1]
            self._expected[f"copy of {name}", sender] = [0]

    def check(self) -> float:
        """Everything took effect once and in its sender's order; when the last message ended."""
        found: Entries = defaultdict(list)
        for name in sorted({name for name, _ in self._expected}):
            for sender, number in self._site.entities.state(self._site.Ledger.ref(name)).entries:
                found[name, sender].append(number)
        # Only what differs: a whole round is long.
        wrong = {which: (found[which], due) for which, due in self._expected.items() if found[which] != due}
        assert not wrong, f"found, expected: {wrong}"
        assert set(found) == set(self._expected)
        assert self._rows_of_users() == sorted(self._paid)
        replies = self._site.store.replies(list(self._statuses))
        assert {message_id: reply.status for message_id, reply in replies.items()} == self._statuses
        return max(reply.finished_at_epoch_s for reply in replies.values())

    def _rows_of_users(self) -> list[Any]:
        names = ", ".join(f"'{name}'" for name in self._mixed)
        return query(self._site.store, _PAID.replace("{names}", names))
