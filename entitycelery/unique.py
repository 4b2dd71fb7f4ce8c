"""Keys as mutexes: what a send with `unique` asks for."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from entitycelery.exceptions import ConfigurationError

UniqueRule = Literal["reject", "replace", "queue", "debounce"]

UNIQUE_RULES: tuple[UniqueRule, ...] = get_args(UniqueRule)


class Unique(msgspec.Struct, frozen=True):
    """What becomes of a message whose key is taken, and for how long at least the key is taken if it is stored."""

    rule: UniqueRule
    for_s: float | None = None


def checked_rule(value: UniqueRule | None) -> UniqueRule | None:
    """`value`, when it is one of the rules.

    Raises:
        ConfigurationError: It is not.
    """
    if value is not None and value not in UNIQUE_RULES:
        raise ConfigurationError(f"unique is one of {', '.join(UNIQUE_RULES)}, got {value!r}")
    return value


def unique_of(
    rule: UniqueRule | None, for_s: float | None, *, key: str | None, task_id: str | None, delay_s: float | None
) -> Unique | None:
    """What the options of a call ask for; None: its key, if it has one, is an ordinary key.

    Raises:
        ConfigurationError: The options make no sense together.
    """
    if rule is None:
        if for_s is not None:
            raise ConfigurationError("unique_for_s says how long a key is taken at least: give unique=... too")
        return None
    if key is None or task_id is not None:
        raise ConfigurationError(f"unique={rule!r} is about a key: give key=..., and no task_id")
    if rule == "debounce" and delay_s is None:
        raise ConfigurationError("unique='debounce' waits until nobody has sent for delay_s: give delay_s=...")
    return Unique(rule, for_s)
