"""`@handler` and `@query`: methods of an entity class, and what they are on a reference or on an entity by hand."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, Protocol, Self, TypedDict, TypeVar, Unpack, overload

from entitycelery.calls import Call
from entitycelery.operation import HandlerOptions, Operation, RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
E = TypeVar("E")


class BoundHandler(Call[P, R], Generic[P, R, R_co]):
    """A handler of an entity at hand: call it to run it here, or use a verb to send it a message."""

    __slots__ = ("_entity",)

    def __init__(self, entity: Any, operation: Operation, capacity: int | None) -> None:
        super().__init__(operation, entity.turn.address, entity.turn.port, capacity)
        self._entity = entity

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:  # type: ignore[override]
        result: R_co = self._operation.function(self._entity, *args, **kwargs)
        return result


class Handler(Generic[E, P, R, R_co]):
    """A method that may change the state; one message is one call of it."""

    def __init__(self, function: Callable[Concatenate[E, P], R_co], options: HandlerOptions) -> None:
        self.function = function
        self.options_given = options
        self.attribute = function.__name__
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name

    @overload
    def __get__(self, instance: None, owner: type[E]) -> Self: ...
    @overload
    def __get__(self, instance: E, owner: type[E]) -> BoundHandler[P, R, R_co]: ...
    def __get__(self, instance: E | None, owner: type[E]) -> Any:
        return self if instance is None else _bind(instance, self)


class _Unbound(Generic[P, R_co]):
    """A handler of an entity that is not running in a turn: it can be called, not sent to."""

    __slots__ = ("_entity", "_handler")

    def __init__(self, entity: Any, handler: Handler[Any, Any, Any, Any]) -> None:
        self._entity = entity
        self._handler = handler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler.function(self._entity, *args, **kwargs)

    def __getattr__(self, verb: str) -> NoReturn:
        raise AttributeError(
            f"{type(self._entity).__name__}.{self._handler.attribute}.{verb}: this entity was made by hand and has no "
            f"address; use {type(self._entity).__name__}.ref(id).{self._handler.attribute}.{verb}(...)"
        )


def _bind(entity: Any, handler: Handler[Any, Any, Any, Any]) -> Any:
    turn = entity.__dict__.get("_turn")
    if turn is None:
        return _Unbound(entity, handler)
    kind = type(entity).__entity_type__
    return BoundHandler(entity, kind.operation_of(handler.attribute), kind.mailbox_capacity)


class _HandlerDecorator(Protocol):
    @overload
    def __call__(
        self, fn: Callable[Concatenate[E, P], Coroutine[Any, Any, R]]
    ) -> Handler[E, P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[E, P], R]) -> Handler[E, P, R, R]: ...


@overload
def handler(fn: Callable[Concatenate[E, P], Coroutine[Any, Any, R]], /) -> Handler[E, P, R, Coroutine[Any, Any, R]]: ...
@overload
def handler(fn: Callable[Concatenate[E, P], R], /) -> Handler[E, P, R, R]: ...
@overload
def handler(
    *,
    name: str | None = None,
    autoretry_for: tuple[type[BaseException], ...] = (),
    max_retries: int | None = 3,
    retry_backoff: bool | float = True,
    retry_backoff_max: float = 600.0,
    retry_jitter: bool = True,
    turn_timeout_s: float | None = None,
    throws: tuple[type[BaseException], ...] = (),
) -> _HandlerDecorator: ...
def handler(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    autoretry_for: tuple[type[BaseException], ...] = (),
    max_retries: int | None = 3,
    retry_backoff: bool | float = True,
    retry_backoff_max: float = 600.0,
    retry_jitter: bool = True,
    turn_timeout_s: float | None = None,
    throws: tuple[type[BaseException], ...] = (),
) -> Any:
    """Make a method of an entity class a handler.

    The method may be `def` or `async def`. The retry options are Celery's.

    Args:
        name: The operation's name on the wire, if not the method's.
        autoretry_for: Exceptions after which the message is tried again.
        max_retries: How often at most; None: for ever.
        retry_backoff: True: 1, 2, 4, ... seconds; a number: the first delay in seconds; False: 1 second each time.
        retry_backoff_max: Longest delay in seconds.
        retry_jitter: Whether each delay is a random one between zero and the computed one.
        turn_timeout_s: Longest run of this handler, in place of `entity_turn_timeout_s`.
        throws: Exceptions that are part of what the handler does: logged without a traceback, at INFO.
    """
    options = handler_options(
        name=name,
        autoretry_for=autoretry_for,
        max_retries=max_retries,
        retry_backoff=retry_backoff,
        retry_backoff_max=retry_backoff_max,
        retry_jitter=retry_jitter,
        turn_timeout_s=turn_timeout_s,
        throws=throws,
    )
    return Handler(fn, options) if fn is not None else lambda function: Handler(function, options)


class TurnOptions(TypedDict, total=False):
    """What `handler` takes besides a name, for functions that are called like one."""

    autoretry_for: tuple[type[BaseException], ...]
    max_retries: int | None
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    turn_timeout_s: float | None
    throws: tuple[type[BaseException], ...]


def handler_options(*, name: str | None = None, **given: Unpack[TurnOptions]) -> HandlerOptions:
    """The options of a handler: see `handler` for what they mean and their defaults."""
    backoff = given.get("retry_backoff", True)
    return HandlerOptions(
        name=name,
        retry=RetryPolicy(
            autoretry_for=tuple(given.get("autoretry_for", ())),
            max_retries=given.get("max_retries", 3),
            retry_backoff_s=1.0 if isinstance(backoff, bool) else float(backoff),
            exponential=backoff is not False,
            retry_backoff_max_s=float(given.get("retry_backoff_max", 600.0)),
            retry_jitter=given.get("retry_jitter", True),
        ),
        turn_timeout_s=given.get("turn_timeout_s"),
        throws=tuple(given.get("throws", ())),
    )


class Query(Generic[E, P, R]):
    """A read-only method that runs on the committed state, in the calling process."""

    def __init__(self, function: Callable[Concatenate[E, P], R]) -> None:
        self.function = function
        self.attribute = function.__name__
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name

    @overload
    def __get__(self, instance: None, owner: type[E]) -> Self: ...
    @overload
    def __get__(self, instance: E, owner: type[E]) -> Callable[P, R]: ...
    def __get__(self, instance: E | None, owner: type[E]) -> Any:
        if instance is None:
            return self
        return self.function.__get__(instance, owner)


def query(fn: Callable[Concatenate[E, P], R]) -> Query[E, P, R]:
    """Make a method of an entity class a query: what it changes is dropped."""
    return Query(fn)
