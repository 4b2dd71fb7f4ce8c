"""`Entity`, the base class of what users write."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, dataclass_transform

import msgspec

from entitycelery.address import Address
from entitycelery.calls import Call, Prepared, checked_instant, checked_s, own_operation, prepared_of
from entitycelery.clock import epoch_from
from entitycelery.effects import CallOptions
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError
from entitycelery.limits import valid_name
from entitycelery.ref import Ref
from entitycelery.signals import Continuations
from entitycelery.state import Field, fields_of
from entitycelery.timers import checked_interval_s

if TYPE_CHECKING:
    from entitycelery.context import Turn

AnyResult = TypeVar("AnyResult")


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Entity:
    """An addressed unit of state and behaviour.

    Annotated attributes with a default are its durable state; `ClassVar` and `_private` names are not. A value that
    is not a constant is given as `msgspec.field(default_factory=...)`, or as it is: each entity gets its own copy.
    Assigning an attribute that is not declared is an error.

    `Account(balance=5).deposit(5)` is a plain object without any app: a unit test. A stored entity is restored
    without calling `__init__`.
    """

    __entity_type__: ClassVar[EntityType | None] = None
    __entity_fields__: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__entity_fields__ = fields_of(cls)
        cls.__entity_type__ = None

    def __init__(self, **values: Any) -> None:
        fields = type(self).__entity_fields__
        unknown = [name for name in values if name not in fields]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no state field {unknown[0]!r}; it has: {', '.join(fields)}")
        state = {name: values[name] if name in values else field.factory() for name, field in fields.items()}
        self.__dict__.update(state, _extra_fields={})

    @classmethod
    def ref(cls, entity_id: str | int) -> Self:
        """A reference to the entity of this id, typed as the class; it offers the handlers' verbs and the queries.

        Raises:
            ConfigurationError: The class is not registered with an app, or the id is not valid.
        """
        kind = cls.__entity_type__
        if kind is None:
            raise ConfigurationError(
                f"{cls.__name__} is not registered: put @entities.register or @shared_entity above the class"
            )
        return cast("Self", Ref(kind, entity_id))

    @property
    def turn(self) -> Turn:
        """The turn that is handling a message of this entity.

        Raises:
            ConfigurationError: The entity was made by hand or is read by a query, so there is no turn.
        """
        turn = self.__dict__.get("_turn")
        if turn is None:
            raise ConfigurationError(f"self.turn exists only while a message of {type(self).__name__} is handled")
        return cast("Turn", turn)

    def remind(
        self,
        name: str,
        call: Call[..., Any] | Prepared[Any],
        *,
        after_s: float | timedelta | None = None,
        at: datetime | None = None,
        every_s: float | timedelta | None = None,
    ) -> None:
        """Set a timer: have one of this entity's own handlers called later, whatever runs by then.

        `self.remind("bill", self.bill, after_s=3600)`, or with arguments `self.bill.prepare(5)`. A timer of this name
        that is set already is replaced. It is committed with the turn, fires once, as an ordinary message, and not
        early. `self.turn.cancel_timer(name)` cancels it, `entities.timers(ref)` lists what is set.

        Args:
            after_s: So many seconds from now.
            at: At this aware instant; a past one means at once.
            every_s: Again every so many seconds, at least 1, counted from the first time: that of `after_s` or `at`,
                else one interval from now. Moments that were missed are made up for by one firing.

        Raises:
            ConfigurationError: There is no turn, the call is not one of this entity's, it has options, or the times
                make no sense.
        """
        turn = self.turn
        send = call.send if isinstance(call, Prepared) else prepared_of(call)
        if send.address != turn.address or send.options != CallOptions():
            raise ConfigurationError(
                f"remind({name!r}, ...) takes a handler of the entity itself, without options: self.bill, or "
                f"self.bill.prepare(5); got {send.operation} of {send.address}"
            )
        if after_s is not None and at is not None:
            raise ConfigurationError("after_s and at exclude each other: give one")
        if after_s is None and at is None and every_s is None:
            raise ConfigurationError(f"remind({name!r}, ...) takes after_s, at or every_s, got none of them")
        instant = checked_instant("at", at)
        turn.set_timer(
            valid_name("a timer", name),
            send,
            after_s=checked_s("after_s", after_s),
            at_epoch_s=None if instant is None else epoch_from(instant),
            every_s=checked_interval_s(checked_s("every_s", every_s)),
        )

    def expect(
        self,
        name: str,
        *,
        then: Call[..., Any],
        on_timeout: Call[..., Any] | None = None,
        on_failure: Call[..., Any] | None = None,
        timeout_s: float | timedelta | None = None,
    ) -> str:
        """Go on when a signal is completed, and serve other messages meanwhile; the token that completes it.

        `self.expect("approval", then=self.on_approval, on_timeout=self.on_silence, timeout_s=7 * 86_400)`. State,
        expectation and reply commit together. Exactly one of the three handlers is called, once, as an ordinary
        turn; without one for how it ended, the signal is a dead letter with the reason. It may be completed already,
        then it goes on at once.

        Args:
            name: Of the signal. It can be expected again once it is over.
            then: Gets the value, if it takes an argument, typed by that one's annotation.
            on_timeout: Called without arguments.
            on_failure: Gets the error of `fail` or `cancel` as a `Failure`, if it takes an argument.
            timeout_s: Longest wait; None: for ever.

        Raises:
            ConfigurationError: There is no turn, the name is expected already, a handler is not one of this entity's
                or needs other arguments, or `on_timeout` comes without `timeout_s`.
        """
        turn = self.turn
        what = f"expect({name!r:.80}, ...)"
        valid_name("a signal", name)
        if on_timeout is not None and timeout_s is None:
            raise ConfigurationError(f"{what} has on_timeout and no timeout_s: say after how many seconds")
        continuations = Continuations(
            _continuation(then, turn.address, f"then of {what}", 1),
            None if on_timeout is None else _continuation(on_timeout, turn.address, f"on_timeout of {what}", 0),
            None if on_failure is None else _continuation(on_failure, turn.address, f"on_failure of {what}", 1),
        )
        return turn.expect(name, continuations, checked_s("timeout_s", timeout_s))

    def reply_later(self, *, by: str | None = None) -> AnyResult:  # type: ignore[type-var] # what the handler returns
        """Leave the answer of this message to what this turn expects: to the signal `by`, or whichever of its signals
        is completed first.

        What that one's handler returns, or raises, is the answer; whoever asked waits for it, and no worker does.
        This handler's own return value is dropped: `return self.reply_later()`.

        Raises:
            ConfigurationError: There is no turn; or, when the handler ends, it expects nothing.
        """
        self.turn.reply_later(by)
        return cast("AnyResult", None)

    def __setattr__(self, name: str, value: object) -> None:
        cls = type(self)
        if name in cls.__entity_fields__ or name.startswith("_") or isinstance(getattr(cls, name, None), property):
            object.__setattr__(self, name, value)
            return
        raise AttributeError(
            f"{cls.__name__} has no state field {name!r}: declare it in the class with an annotation and a default"
        )

    def __repr__(self) -> str:
        state = ", ".join(f"{name}={self.__dict__.get(name)!r}" for name in type(self).__entity_fields__)
        return f"{type(self).__name__}({state})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(self.__dict__.get(n) == other.__dict__.get(n) for n in type(self).__entity_fields__)

    __hash__ = None  # type: ignore[assignment]


def _continuation(call: Call[..., Any], address: Address, what: str, arguments: int) -> str:
    operation = own_operation(call, address, what)
    if operation.required > arguments:
        takes = "one argument at most" if arguments else "no argument"
        raise ConfigurationError(f"{what} is called with {takes}, and {operation.label} needs {operation.required}")
    return operation.name
