"""A studio: renderings belong to the workers with a graphics card, orders to the office, big ones too to the cards."""

from __future__ import annotations

import json
import os

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

app = Celery("studio")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))
entities = EntityCelery(app)


def by_size(entity_id: str) -> str:
    return "gpu" if entity_id.startswith("big") else "office"


@entities.register(shard_group="gpu", aliases=("Film",))
class Rendering(Entity):
    orders: list[str] = []

    @handler
    def render(self, order: str = "") -> int:
        """Render; the process that did it, which with threads is the worker's."""
        self.orders.append(order)
        if order:
            Order.ref(order).finish.send()
        return os.getpid()

    @handler
    def is_at_home(self) -> bool:
        return entities.is_local(Rendering.ref(self.turn.id))


@entities.register(shard_group=by_size)
class Order(Entity):
    finished_by: int = 0

    @handler
    def place(self) -> int:
        Rendering.ref("movie").render.send(self.turn.id)
        return os.getpid()

    @handler
    def finish(self) -> int:
        self.finished_by = os.getpid()
        return os.getpid()

    @handler
    def is_movie_here(self) -> bool:
        return entities.is_local(Rendering.ref("movie"))
