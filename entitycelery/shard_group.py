"""Which shard group an entity belongs to: one for its whole type, or one for each id."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from entitycelery.address import is_group_name, quoted
from entitycelery.exceptions import ConfigurationError

DEFAULT_GROUP = "default"

ShardGroup = str | Callable[[str], str]
"""What a type says of its group: its name, or a function that gives it for an id."""


class GroupRule:
    """How one entity type chooses.

    Raises:
        ConfigurationError: What is given can never name a group.
    """

    def __init__(self, type_name: str, given: ShardGroup) -> None:
        self._type_name = type_name
        self.constant: str | None = None
        if isinstance(given, str):
            self.constant = self._checked(given, "shard_group")
        elif inspect.iscoroutinefunction(given) or not _takes_one(given):
            raise ConfigurationError(
                f"{type_name}: shard_group is the name of a group or a plain function of the id, got {given!r}"
            )
        else:
            self._function = given

    def of(self, entity_id: str) -> str:
        """The group of an id.

        Raises:
            ConfigurationError: The function failed, or gave what cannot be a group.
        """
        if self.constant is not None:
            return self.constant
        asked = f"shard_group({quoted(entity_id)})"
        try:
            given = self._function(entity_id)
        except Exception as exc:
            raise ConfigurationError(f"{self._type_name}: {asked} failed: {type(exc).__name__}: {exc}") from exc
        return self._checked(given, asked)

    def _checked(self, given: object, said_by: str) -> str:
        if not isinstance(given, str) or not is_group_name(given):
            shown = quoted(given) if isinstance(given, str) else repr(given)
            raise ConfigurationError(
                f"{self._type_name}: {said_by} names a group by letters, digits, '_' and '-', got {shown}"
            )
        return given


def _takes_one(function: object) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind("id")
    except TypeError:
        return False
    except ValueError:
        # Some builtins do not say what they take; the first call does.
        return True
    return True
