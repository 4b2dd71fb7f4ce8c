"""One app in two releases, chosen by SHOP_RELEASE: the second renames, adds, and keeps its state in another form."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from entitycelery import Entity, EntityCelery, handler, upgrade

app = Celery("shop")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))
entities = EntityCelery(app)

if os.environ["SHOP_RELEASE"] == "1":

    @entities.register
    class Cart(Entity):
        items: list[str] = []

        @handler
        def add(self, item: str) -> int:
            self.items.append(item)
            return len(self.items)

    @entities.register
    class Stock(Entity):
        pieces: int = 0

        @handler
        def put(self, pieces: int) -> int:
            self.pieces += pieces
            return self.pieces

else:

    @entities.register(name="Cart", state_version=2)
    class Basket(Entity):
        rows: list[str] = []

        @upgrade(from_version=1)
        def to_rows(state: dict[str, Any]) -> dict[str, Any]:
            return {"rows": state["items"]}

        @handler
        def add(self, item: str, note: str = "") -> int:
            self.rows.append(item + note)
            return len(self.rows)

        @handler
        def count(self) -> int:
            return len(self.rows)

    @entities.register
    class Stock(Entity):  # type: ignore[no-redef]
        pieces: int = 0
        place: str = ""

        @handler(name="put")
        def store(self, pieces: int) -> int:
            self.pieces += pieces
            self.place = "cellar"
            return self.pieces

    @entities.register
    class Coupon(Entity):
        used: int = 0

        @handler
        def use(self) -> int:
            self.used += 1
            return self.used
