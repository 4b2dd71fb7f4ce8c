"""A thousand Celery tasks at once, some of which fail, and one result: no chord, no result backend, nothing to lose.

celery -A fan_out worker
python fan_out.py
"""

import importlib
from functools import partial

from celery import Celery

from entitycelery import EntityCelery, Workflow

app = Celery("fan_out")
entities = EntityCelery(app)


@app.task
def word_count(page: int) -> int:
    """A task as you have them; any worker of the app may run it, on any queue."""
    if page % 100 == 99:
        raise ValueError(f"page {page} is torn")
    return page % 7


@entities.workflow
def count_book(flow: Workflow, pages: int) -> dict[str, int]:
    """Count all pages at once. What a page's task raises is that page's own affair."""

    def count(page: int) -> int | None:
        try:
            return int(flow.task(word_count, page))
        except ValueError:
            return None

    counts = flow.gather(*[partial(count, page) for page in range(pages)])
    return {"words": sum(filter(None, counts)), "torn": counts.count(None)}


def main() -> None:
    """One workflow; its result is stored when the last task has ended, whatever was restarted meanwhile."""
    book = count_book.options(key="moby-dick").start(1_000)
    print(book.result(timeout_s=120))
    print("calls in its journal:", len(book.timeline()))


if __name__ == "__main__":
    importlib.import_module("fan_out").main()
