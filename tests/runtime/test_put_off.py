"""Mail that the code of a worker does not know: put off for a worker whose code does, and never lost in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from entitycelery import Entity, EntityCelery, handler, upgrade
from entitycelery.exceptions import MalformedMessage, StateConflict, UnknownEntityType, UnknownOperation
from entitycelery.message import Status
from entitycelery.runtime.put_off import LONGEST_PAUSE_S, SHORTEST_PAUSE_S
from entitycelery.settings import Settings
from tests.client.support import drain, make_entities, time_passes
from tests.runtime.support import dead_letters
from tests.storage.support import change

WINDOW_S = Settings().deploy_window_s


class NotYetError(Exception):
    """What a handler tries again for."""


class Releases:
    """The old and the new release of an app on one store."""

    def __init__(self, url: str, cluster: str, **settings: Any) -> None:
        self.old, self.new = (make_entities(url, cluster, **settings) for _ in range(2))

        @self.old.register(name="Cart")
        class OldCart(Entity):
            items: list[str] = []

            @handler
            def add(self, item: str) -> int:
                self.items.append(item)
                return len(self.items)

        @self.new.register(name="Cart", state_version=2)
        class NewCart(Entity):
            rows: list[str] = []

            @upgrade(from_version=1)
            def to_rows(state: dict[str, Any]) -> dict[str, Any]:
                return {"rows": state["items"]}

            @handler
            def add(self, item: str, note: str = "") -> int:
                self.rows.append(item + note)
                return len(self.rows)

            @handler(autoretry_for=(NotYetError,), max_retries=1, retry_backoff=1, retry_jitter=False)
            def check_out(self, passes: bool) -> int:
                if not passes or not self.turn.attempt:
                    raise NotYetError
                return self.turn.attempt

        @self.new.register
        class Coupon(Entity):
            used: int = 0

            @handler
            def use(self) -> int:
                self.used += 1
                return self.used

        self.OldCart, self.NewCart, self.Coupon = OldCart, NewCart, Coupon


@pytest.fixture
def releases(store_url: str, cluster_name: str) -> Iterator[Releases]:
    made = Releases(store_url, cluster_name)
    with closing(made.old), closing(made.new):
        yield made


def waits_for_other_code(entities: EntityCelery, seconds: float) -> None:
    """Time passes for put-off mail too: the moment since which nobody has known it lies in its last failure."""
    time_passes(entities, seconds)
    if entities.store.dialect.name == "sqlite":
        since = "json_extract(last_failure, '$.unknown_since_epoch_s')"
        moved = f"json_set(last_failure, '$.unknown_since_epoch_s', {since} - {seconds})"
        known = f"{since} IS NULL"
    else:
        since = "CAST(last_failure ->> 'unknown_since_epoch_s' AS double precision)"
        moved = f"jsonb_set(last_failure, ARRAY['unknown_since_epoch_s'], to_jsonb({since} - {seconds}))"
        known = "last_failure ->> 'unknown_since_epoch_s' IS NULL"
    change(entities.store, f"UPDATE {{message}} SET last_failure = {moved} WHERE NOT {known}")  # noqa: S608


def test_a_new_operation_that_reaches_old_code_is_done_by_new_code(releases: Releases) -> None:
    sent = releases.NewCart.ref("c").check_out.options(key="k").send(passes=True)

    assert drain(releases.old) == 1
    [message] = releases.old.messages()
    assert (message.id, message.attempt) == (sent.id, 0)
    assert message.last_failure is not None
    assert message.last_failure.reason == UnknownOperation.reason
    waits_for_other_code(releases.old, SHORTEST_PAUSE_S)
    drain(releases.new)
    time_passes(releases.new, 2)
    drain(releases.new)

    # What the old code did was no attempt: the one retry that the handler allows is left.
    assert sent.result(timeout_s=5) == 1
    assert dead_letters(releases.new) == []


def test_a_new_type_that_reaches_old_code_is_done_by_new_code_in_order(releases: Releases) -> None:
    sent = [releases.Coupon.ref("c").use.send() for _ in range(2)]

    drain(releases.old)
    # This one reaches the new code first, and is not its turn yet.
    sent.append(releases.Coupon.ref("c").use.send())
    drain(releases.new)
    assert len(releases.new.messages()) == 3
    waits_for_other_code(releases.old, SHORTEST_PAUSE_S)
    drain(releases.new)

    assert [one.result(timeout_s=5) for one in sent] == [1, 2, 3]


def test_a_new_argument_that_reaches_old_code_is_done_by_new_code(releases: Releases) -> None:
    sent = releases.NewCart.ref("c").add.send("tea", note="!")

    drain(releases.old)
    waits_for_other_code(releases.old, SHORTEST_PAUSE_S)
    drain(releases.new)

    assert sent.result(timeout_s=5) == 1
    assert releases.new.state(releases.NewCart.ref("c")).rows == ["tea!"]


def test_old_code_leaves_a_state_of_newer_code_and_its_mail_alone(releases: Releases) -> None:
    releases.OldCart.ref("c").add.send("tea")
    drain(releases.old)
    releases.NewCart.ref("c").add.send("milk")
    drain(releases.new)

    sent = [releases.OldCart.ref("c").add.send("bread")]
    drain(releases.old)
    sent.append(releases.OldCart.ref("c").add.send("salt"))
    drain(releases.new)
    assert [message.id for message in releases.old.messages()] == [one.id for one in sent]
    waits_for_other_code(releases.old, SHORTEST_PAUSE_S)
    drain(releases.new)

    assert [one.result(timeout_s=5) for one in sent] == [3, 4]
    assert releases.new.state(releases.NewCart.ref("c")).rows == ["tea", "milk", "bread", "salt"]


def test_mail_that_old_code_knows_is_not_held_back_by_mail_that_it_does_not(releases: Releases) -> None:
    releases.NewCart.ref("c").check_out.send(passes=True)
    behind = releases.OldCart.ref("c").add.send("tea")

    drain(releases.old)

    assert behind.result(timeout_s=5) == 1


@pytest.mark.parametrize(
    ("what", "error"),
    [("operation", UnknownOperation), ("type", UnknownEntityType), ("argument", MalformedMessage)],
)
def test_what_nobody_knows_within_the_window_is_a_dead_letter(
    releases: Releases, what: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    sent = {
        "operation": lambda: releases.NewCart.ref("c").check_out.send(passes=True),
        "type": lambda: releases.Coupon.ref("c").use.send(),
        "argument": lambda: releases.NewCart.ref("c").add.send("tea", note="!"),
    }[what]()
    with caplog.at_level(logging.INFO):
        drain(releases.old)
        waits_for_other_code(releases.old, WINDOW_S - 60)
        drain(releases.old)
        assert releases.old.reply(sent.id) is None
        waits_for_other_code(releases.old, 61)
        drain(releases.old)

    with pytest.raises(error):
        sent.result(timeout_s=5)
    reply = releases.old.reply(sent.id)
    assert reply is not None
    assert reply.status is Status.DEAD
    assert [(letter[0], letter[1]) for letter in dead_letters(releases.old)] == [(sent.id, error.reason)]  # type: ignore[attr-defined]
    levels = [record.levelname for record in caplog.records if getattr(record, "message_id", "") == sent.id]
    assert levels == ["WARNING", "WARNING", "ERROR"]


def test_a_rollback_that_lasts_makes_dead_letters_and_keeps_the_newer_state(releases: Releases) -> None:
    releases.NewCart.ref("c").add.send("milk")
    drain(releases.new)
    sent = releases.OldCart.ref("c").add.send("bread")
    drain(releases.old)
    waits_for_other_code(releases.old, WINDOW_S + 1)
    drain(releases.old)

    with pytest.raises(StateConflict, match="written as version 2, this code knows versions up to 1"):
        sent.result(timeout_s=5)
    assert [letter[0] for letter in dead_letters(releases.old)] == [sent.id]
    assert releases.new.state(releases.NewCart.ref("c")).rows == ["milk"]


def test_the_pauses_grow_to_half_a_minute_and_end_with_the_window(releases: Releases) -> None:
    releases.Coupon.ref("c").use.send()
    began_s = time.time()
    for passed_s, pause_s in ((0, SHORTEST_PAUSE_S), (40, 10), (200, LONGEST_PAUSE_S), (WINDOW_S - 260, 20)):
        waits_for_other_code(releases.old, passed_s)
        assert drain(releases.old) == 1
        [message] = releases.old.messages()
        assert message.due_at_epoch_s is not None
        # The test itself takes some time, which counts too.
        took_s = time.time() - began_s
        assert message.due_at_epoch_s - time.time() == pytest.approx(pause_s, abs=took_s + 0.1)


def test_without_a_window_it_is_a_dead_letter_at_once(store_url: str, cluster_name: str) -> None:
    releases = Releases(store_url, cluster_name, deploy_window_s=0)
    with closing(releases.old), closing(releases.new):
        sent = releases.Coupon.ref("c").use.send()
        drain(releases.old)

        with pytest.raises(UnknownEntityType):
            sent.result(timeout_s=5)
        assert len(dead_letters(releases.old)) == 1


def test_what_a_handler_raises_by_itself_is_its_answer(releases: Releases) -> None:
    @releases.old.register
    class Asker(Entity):
        n: int = 0

        @handler
        def look(self, address: str) -> str:
            return str(releases.old.ref(address))

    sent = Asker.ref("a").look.send("Nobody/1")
    drain(releases.old)

    with pytest.raises(UnknownEntityType):
        sent.result(timeout_s=5)
    assert dead_letters(releases.old) == []
