"""A checkout that may be repeated: the web shop asks again after a time-out, and nothing happens twice.

celery -A orders worker
python orders.py
"""

import importlib

from celery import Celery
from sqlalchemy import text

from entitycelery import Entity, EntityCelery, handler

app = Celery("orders")
entities = EntityCelery(app)


class SoldOut(Exception):
    """There is not enough of the article."""


@entities.register
class Warehouse(Entity):
    """Keeps a table of stock that other programs read; an ordinary table in the same database."""

    is_set_up: bool = False

    @handler
    def set_up(self, stock: dict[str, int]) -> None:
        """Make the table and fill it."""
        conn = self.turn.connection
        conn.execute(text("CREATE TABLE IF NOT EXISTS stock (article text PRIMARY KEY, count int NOT NULL)"))
        for article, count in stock.items():
            conn.execute(
                text("INSERT INTO stock VALUES (:a, :n) ON CONFLICT (article) DO UPDATE SET count = excluded.count"),
                {"a": article, "n": count},
            )
        self.is_set_up = True


@entities.register
class Order(Entity):
    """One order; its id is the order's number."""

    status: str = "new"
    receipt: str = ""

    @handler
    def check_out(self, article: str, count: int) -> str:
        """Take the articles from the stock: the row, the state and the message to the mailer commit together."""
        taken = self.turn.connection.execute(
            text("UPDATE stock SET count = count - :n WHERE article = :a AND count >= :n"),
            {"n": count, "a": article},
        )
        if taken.rowcount == 0:
            raise SoldOut(article)
        self.status = "placed"
        self.receipt = f"{count} {article}"
        Mailer.ref("mailer").send_receipt.send(self.turn.id, self.receipt)
        return self.receipt


@entities.register
class Mailer(Entity):
    """Sends receipts. A mail may go out twice after a crash, so it carries an id by which the other side can tell."""

    sent: int = 0

    @handler
    def send_receipt(self, order: str, receipt: str) -> str:
        """Hand the mail over."""
        self.sent += 1
        return f"order {order}: {receipt} (Message-ID {self.turn.message_id})"


def main() -> None:
    """Check out an order twice and another one for which nothing is left."""
    Warehouse.ref("main").set_up.ask({"tea": 3})

    check_out = Order.ref("17").check_out.options(key="checkout")
    print("first: ", check_out.ask("tea", 2))
    print("again: ", check_out.ask("tea", 2))

    try:
        Order.ref("18").check_out.options(key="checkout").ask("tea", 2)
    except SoldOut as exc:
        print("order 18 is refused, sold out:", exc)
    print("order 18 is", entities.state(Order.ref("18")).status)

    # The mail of order 17 was stored with its reply, so it stands in front of this one.
    print(Mailer.ref("mailer").send_receipt.ask("test", "nothing").partition(" (")[0])
    print("mails:", entities.state(Mailer.ref("mailer")).sent)


if __name__ == "__main__":
    # As the module, not as __main__: the exception that comes back from the worker is orders.SoldOut.
    importlib.import_module("orders").main()
