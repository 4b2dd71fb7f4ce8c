"""A report each night, made once for each night whatever happens to workers; late nights can be made up for.

celery -A nightly_report worker
python nightly_report.py
"""

import importlib
from datetime import UTC, date, datetime

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

app = Celery("nightly_report", timezone="Europe/Berlin")
entities = EntityCelery(app)


@entities.register
class Sales(Entity):
    """What was sold on one day."""

    total: int = 0
    reported: int | None = None

    @handler
    def sell(self, amount: int) -> int:
        """Note a sale."""
        self.total += amount
        return self.total

    @handler
    def report(self) -> int:
        """Close the day."""
        self.reported = self.total
        return self.total


# At 02:30 of each day's clock: on the night when that hour is skipped at 03:00, on the one when it comes twice once.
@entities.cron("30 2 * * *", misfire="latest", skip_if_older_than_s=86_400)
def nightly(scheduled_at: datetime) -> None:
    """Report the day on which the tick falls. The message to it is stored with this turn."""
    Sales.ref(scheduled_at.date().isoformat()).report.send()


def main() -> None:
    """Sell on three days, and make up for the nights of March on which nothing ran."""
    days = [date(2026, 3, day) for day in (28, 29, 30)]
    for day in days:
        Sales.ref(day.isoformat()).sell.ask(day.day)
    span = datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC)

    entities.store_schedules()
    nights = entities.backfill_schedule("nightly", *span)
    again = entities.backfill_schedule("nightly", *span)
    for night in nights:
        entities.client.result(night, 30.0)

    for day in days:
        sales = Sales.ref(day.isoformat())
        # Behind the report in the mailbox: once it is answered, so is that.
        sales.sell.ask(0)
        print(f"{day}: {entities.state(sales).reported} reported")
    print(f"{len(nights)} nights, then {len(again)}")


if __name__ == "__main__":
    importlib.import_module("nightly_report").main()
