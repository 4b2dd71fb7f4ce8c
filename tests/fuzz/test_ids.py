"""Entity ids: every text that UTF-8 and an index row can hold, and a sentence for all others."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import ConfigurationError
from entitycelery.limits import LARGEST_ID_BYTES
from tests.client.support import drain
from tests.fuzz.support import Box, assert_sentence, assert_served, make_boxes

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    "entity_id",
    ["", "\0", "a\0b", "\ud800", "x" * 10_000_000, "€" * 1_000, 10**5_000, None, True, 1.5, b"a", ["a"], object()],
    ids=lambda entity_id: type(entity_id).__name__,
)
def test_an_id_that_cannot_be_kept_is_refused_in_a_sentence(entity_id: Any, entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Box.ref(entity_id).add.send(1)

    assert_sentence(refused.value)
    assert_served(entities, "a")


@FUZZ
@given(entity_id=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=200))
def test_any_other_id_is_an_entity_of_its_own(entity_id: str, entities: EntityCelery) -> None:
    before = entities.state(Box.ref(entity_id)).count

    sent = Box.ref(entity_id).add.send(1)
    drain(entities)

    assert sent.result(timeout_s=0) == before + 1
    assert entities.state(entities.ref(f"Box/{entity_id}")).count == before + 1


def test_the_longest_id_of_the_longest_type_fits_into_every_index(store_url: str, cluster_name: str) -> None:
    entities = make_boxes(store_url, cluster_name, max_id_bytes=LARGEST_ID_BYTES)

    @entities.register(name="T" * 200)
    class Longest(Entity):
        count: int = 0

        @handler
        def add(self) -> int:
            self.count += 1
            return self.count

    # Nothing that PostgreSQL could compress.
    entity_id = "".join(chr(random.Random(17 * n).randrange(0x4E00, 0x9FFF)) for n in range(LARGEST_ID_BYTES // 3))
    sent = [Longest.ref(entity_id).add.send() for _ in range(2)]
    drain(entities)

    assert [one.result(timeout_s=0) for one in sent] == [1, 2]
    entities.close()
