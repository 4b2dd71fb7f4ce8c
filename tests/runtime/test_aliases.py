"""Mail to an alias is mail to the entity of the type's own name."""

from __future__ import annotations

import threading

from entitycelery import Entity, EntityCelery, handler
from entitycelery.address import ShardId
from tests.client.support import drain, make_entities


def old_and_new(url: str, cluster: str) -> tuple[EntityCelery, type[Entity], EntityCelery, type[Entity]]:
    """Two releases of an app, in the second of which Cart is called Order."""
    old, new = make_entities(url, cluster), make_entities(url, cluster)

    @old.register
    class Cart(Entity):
        items: int = 0

        @handler
        def add(self, items: int) -> int:
            self.items += items
            return self.items

    @new.register(aliases=("Cart",))
    class Order(Entity):
        items: int = 0

        @handler
        def add(self, items: int) -> int:
            self.items += items
            return self.items

    return old, Cart, new, Order


def test_mail_to_an_alias_and_to_the_own_name_acts_on_one_state(store_url: str, cluster_name: str) -> None:
    old, Cart, new, Order = old_and_new(store_url, cluster_name)
    sent = [(Cart if n % 2 else Order).ref("17").add.send(1) for n in range(20)]

    drain(new)

    assert new.state(Order.ref("17")).items == 20
    assert sorted(one.result(timeout_s=30) for one in sent) == list(range(1, 21))
    assert new.ref("Cart/17") == Order.ref("17")
    old.close()
    new.close()


def test_two_drains_of_the_two_mailboxes_never_both_commit(postgres_url: str, cluster_name: str) -> None:
    old, Cart, new, Order = old_and_new(postgres_url, cluster_name)
    for _ in range(50):
        Cart.ref("17").add.send(1)
        Order.ref("17").add.send(1)
    shards = [ShardId("default", number) for number in range(new.settings.shards_per_group)]

    def work() -> None:
        while new.messages():
            new.host.drain(*shards)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert new.state(Order.ref("17")).items == 100
    old.close()
    new.close()
