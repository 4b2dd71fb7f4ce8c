"""Whom a `reply_to` means."""

from __future__ import annotations

import pytest

from entitycelery.address import Address
from entitycelery.answering import Asker, asker_of


def test_an_asker_is_read_as_it_was_written() -> None:
    asker = Asker("gpu", "2:3.1.0", Address("checkout", "a b/c"))

    assert asker_of(str(asker)) == asker


@pytest.mark.parametrize("reply_to", [None, "", "entity_reply_0f", "entity ", "entity x", "entity g 1 a"])
def test_a_channel_or_nonsense_is_no_asker(reply_to: str | None) -> None:
    assert asker_of(reply_to) is None
