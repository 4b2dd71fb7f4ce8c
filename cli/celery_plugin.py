"""`celery -A app entity ...`: the commands of `entitycelery` as a plugin of Celery's own command line."""

from __future__ import annotations

from typing import Any

import click

from . import exits
from .group import CommandGroup, store_options
from .session import KEY, Session


@click.group("entity", cls=CommandGroup, epilog=exits.epilog())
@store_options
@click.pass_context
def entity(ctx: click.Context, /, **options: Any) -> None:
    """Entities: send messages, look at them, look after their store."""
    # Without -A Celery hands out its default app, whose broker nobody chose.
    named = ctx.parent is None or ctx.parent.params.get("app") is not None
    ctx.meta[KEY] = Session(celery_app=ctx.obj.app if named and ctx.obj else None, under_celery=True, **options)
