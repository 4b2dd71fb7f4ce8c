"""Completion of entity types and operations in a shell, from the app that -A names.

click completes commands and options by itself. Whatever goes wrong here, an app that cannot be imported above all,
must not print into somebody's prompt: then there is nothing to complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from .session import Session

if TYPE_CHECKING:
    from entitycelery.entity_type import EntityType


def addresses_of(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The types of the app, as the beginning of an address."""
    return [CompletionItem(f"{kind.name}/") for kind in _types(ctx) if f"{kind.name}/".startswith(incomplete)]


def types_of(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The types of the app."""
    return [CompletionItem(kind.name) for kind in _types(ctx) if kind.name.startswith(incomplete)]


def operations_of(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The operations of the type of the address before."""
    type_name = str(ctx.params.get("address") or "").partition("/")[0]
    return [
        CompletionItem(name)
        for kind in _types(ctx)
        if type_name in (kind.name, *kind.aliases)
        for name in sorted(kind.operations)
        if name.startswith(incomplete)
    ]


def _types(ctx: click.Context) -> Sequence[EntityType]:
    app_name = ctx.find_root().params.get("app_name")
    if app_name is None:
        return ()
    with contextlib.suppress(Exception):
        # The commands before this one are not run while a shell completes, so there is no session yet.
        return Session(app_name=app_name).entities().types
    return ()
