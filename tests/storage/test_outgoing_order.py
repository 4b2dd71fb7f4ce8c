"""Promise 4 for entities that send: what the turns of one entity send to another comes in the order of the turns."""

from __future__ import annotations

from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    SHARD,
    append,
    commit_of,
    ended,
    handle_all,
    message,
)


def test_messages_that_turns_of_one_batch_send_keep_the_order_of_the_turns(store: SqlStore) -> None:
    # Ids made of keys are in no order at all.
    append(store, *(message("a", key=f"k{number}") for number in range(12)))
    outgoing = [message("b", key=f"out{number}") for number in range(12)]

    with store.drain_session(SHARD) as session:
        [box] = session.claim(100)
        turns = [ended(mail, outgoing=[sent]) for mail, sent in zip(box.mail, outgoing, strict=True)]
        session.commit([commit_of(box, *turns)], last=True)
        session.release([box])

    assert handle_all(store) == [sent.id for sent in outgoing]
