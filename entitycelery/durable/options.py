"""`flow.options(...)`: what goes with one call."""

from __future__ import annotations

from typing import Literal

import msgspec

from entitycelery.exceptions import ConfigurationError
from entitycelery.operation import HandlerOptions

ParentClosePolicy = Literal["cancel", "abandon"]

NO_TURN_OPTIONS = HandlerOptions()


class Options(msgspec.Struct, frozen=True):
    """Options of one call. Not every call takes every one."""

    timeout_s: float | None = None
    retry: HandlerOptions = NO_TURN_OPTIONS
    parent_close_policy: ParentClosePolicy | None = None

    def only(self, call: str, *taken: str) -> Options:
        """Themselves, if the call takes them all.

        Raises:
            ConfigurationError: It does not.
        """
        for name in self.__struct_fields__:
            if name not in taken and getattr(self, name) != getattr(NO_OPTIONS, name):
                said = "options of a retry" if name == "retry" else name
                raise ConfigurationError(f"flow.options(...) has {said}, and {call} takes none")
        return self


NO_OPTIONS = Options()
