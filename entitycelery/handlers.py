"""`@handler` and `@query`, and the calls that references offer.

The verb (`send`, `ask`, `asend`, `aask`, `delay`) takes the handler's arguments and nothing else; what belongs to the
call goes to `.options(...)`. Only so can both be typed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec

from entitycelery.address import Address
from entitycelery.clock import epoch_from, seconds
from entitycelery.effects import CallOptions, Send
from entitycelery.exceptions import ConfigurationError
from entitycelery.operation import HandlerOptions, Operation, RetryPolicy
from entitycelery.port import Port

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
E = TypeVar("E")


class AsyncResult(Protocol[R_co]):
    """The part of Celery's AsyncResult that a typed caller needs; at run time it is Celery's own class."""

    id: str

    def get(self, timeout: float | None = None) -> R_co: ...
    def ready(self) -> bool: ...
    def successful(self) -> bool: ...
    def failed(self) -> bool: ...


class Sent(Generic[R]):
    """A stored message whose reply can be waited for, here or from any process that knows its `id`."""

    __slots__ = ("_operation", "_port", "id")

    def __init__(self, message_id: str, operation: Operation, port: Port) -> None:
        self.id = message_id
        self._operation = operation
        self._port = port

    def result(self, *, timeout_s: float | None = None) -> R:
        """Wait for the handler's result.

        Args:
            timeout_s: Longest wait; None means `entity_ask_timeout_s`.

        Raises:
            ReplyTimeout: Not answered yet; the message stays stored.
            UnknownMessage, MessageExpired, MessageCancelled: There will be no result.
            Exception: What the handler raised, as its own class where that can be imported, else HandlerFailed.
        """
        result: R = self._operation.decode_result(self._port.result(self.id, timeout_s))
        return result

    async def aresult(self, *, timeout_s: float | None = None) -> R:
        """`result`, without blocking the event loop."""
        result: R = self._operation.decode_result(await self._port.aresult(self.id, timeout_s))
        return result

    def __repr__(self) -> str:
        return f"<Sent {self._operation.label} {self.id}>"


class Prepared(Generic[R]):
    """A checked call that is not sent yet: what `EntityCelery.send_many` takes."""

    __slots__ = ("operation", "send")

    def __init__(self, send: Send, operation: Operation) -> None:
        self.send = send
        self.operation = operation


class Call(Generic[P, R]):
    """One operation of one entity, with the options of the call."""

    __slots__ = ("_address", "_capacity", "_operation", "_options", "_port")

    def __init__(
        self,
        operation: Operation,
        address: Address,
        port: Callable[[], Port],
        capacity: int | None,
        options: CallOptions = CallOptions(),  # noqa: B008 - frozen
    ) -> None:
        self._operation = operation
        self._address = address
        self._port = port
        self._capacity = capacity
        self._options = options

    def options(
        self,
        *,
        key: str | None = None,
        delay_s: float | timedelta | None = None,
        deliver_at: datetime | None = None,
        expires_s: float | timedelta | None = None,
        timeout_s: float | timedelta | None = None,
        connection: Any = None,
    ) -> Call[P, R]:
        """This call with options; those that are not given stay as they are.

        Args:
            key: Same address, operation and key is the same message: it is stored once and has one reply.
            delay_s: Not before so many seconds after it is stored.
            deliver_at: Not before this aware instant.
            expires_s: Not after so many seconds after it is stored; then its reply says expired.
            timeout_s: Longest wait of an `ask`.
            connection: Your SQLAlchemy connection or session to the same database: the message exists if and only if
                your transaction commits.
        """
        given: dict[str, Any] = {
            "key": _key(key),
            "delay_s": _duration("delay_s", delay_s),
            "deliver_at": _instant("deliver_at", deliver_at),
            "expires_s": _duration("expires_s", expires_s),
            "timeout_s": _duration("timeout_s", timeout_s),
            "connection": connection,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        options = msgspec.structs.replace(self._options, **chosen)
        if options.delay_s is not None and options.deliver_at is not None:
            raise ConfigurationError("delay_s and deliver_at exclude each other: give one")
        return self._with(options)

    def prepare(self, *args: P.args, **kwargs: P.kwargs) -> Prepared[R]:
        """Check and encode the call for `EntityCelery.send_many`."""
        return Prepared(self._encoded(args, kwargs), self._operation)

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Sent[R]:
        """Store the message; when this returns it will be handled. Inside a turn it is part of the turn's commit.

        Raises:
            MalformedMessage: The arguments do not fit the handler.
            KeyConflict: The key was used with other arguments.
            MailboxFull: The entity's mailbox is at its capacity.
            SendTimeout: It could not be stored in time; with a key it can be sent again without harm.
        """
        port = self._port()
        [message_id] = port.send([self._encoded(args, kwargs)])
        return Sent(message_id, self._operation, port)

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> Sent[R]:
        """`send`, without blocking the event loop."""
        port = self._port()
        [message_id] = await port.asend([self._encoded(args, kwargs)])
        return Sent(message_id, self._operation, port)

    def ask(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Send and wait for the result: `send` and `Sent.result` in one, and faster.

        Raises:
            AskRefused: Called inside a turn.
            Exception: As `send` and `Sent.result`.
        """
        result: R = self._operation.decode_result(self._port().ask(self._encoded(args, kwargs)))
        return result

    async def aask(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """`ask`, without blocking the event loop."""
        result: R = self._operation.decode_result(await self._port().aask(self._encoded(args, kwargs)))
        return result

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """`send` in Celery's spelling: returns Celery's AsyncResult."""
        return self._delayed(self._encoded(args, kwargs))

    def apply_async(
        self,
        args: tuple[Any, ...] | list[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,  # Celery's own name and meaning: seconds or an instant
        task_id: str | None = None,
        **unsupported: Any,
    ) -> AsyncResult[R]:
        """`delay` with Celery's options. `task_id` is a key: the same one twice is the same message.

        Raises:
            ConfigurationError: An option that has no meaning for an entity's message, such as `queue`.
        """
        if unsupported:
            raise ConfigurationError(
                "apply_async of an entity operation takes countdown, eta, expires and task_id; "
                f"{', '.join(sorted(unsupported))} has no meaning for it"
            )
        call = self.options(delay_s=countdown, deliver_at=eta, expires_s=_expires_s(expires))
        if task_id is not None:
            call = call._with(msgspec.structs.replace(call._options, task_id=task_id))
        return call._delayed(call._encoded(tuple(args), kwargs or {}))

    def _with(self, options: CallOptions) -> Call[P, R]:
        return Call(self._operation, self._address, self._port, self._capacity, options)

    def _delayed(self, send: Send) -> AsyncResult[R]:
        port = self._port()
        [message_id] = port.send([send])
        handle: AsyncResult[R] = port.async_result(message_id, self._operation.decode_result)
        return handle

    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Send:
        return Send(
            address=self._address,
            operation=self._operation.name,
            args=self._operation.encode(args, kwargs),
            options=self._options,
            capacity=self._capacity,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigurationError(
            f"{self._address}.{self._operation.name}(...) on a reference runs nothing: "
            f"write .{self._operation.name}.send(...) or .{self._operation.name}.ask(...)"
        )

    def __repr__(self) -> str:
        return f"<Call {self._address} {self._operation.name}>"


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
    """
    options = HandlerOptions(
        name=name,
        retry=RetryPolicy(
            autoretry_for=tuple(autoretry_for),
            max_retries=max_retries,
            retry_backoff_s=1.0 if isinstance(retry_backoff, bool) else float(retry_backoff),
            exponential=retry_backoff is not False,
            retry_backoff_max_s=float(retry_backoff_max),
            retry_jitter=retry_jitter,
        ),
        turn_timeout_s=turn_timeout_s,
    )
    return Handler(fn, options) if fn is not None else lambda function: Handler(function, options)


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


def _key(value: str | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"a key is a str, got {value!r}")
    return value


def _instant(name: str, value: datetime | None) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} is an aware datetime, got {value!r}")
    epoch_from(value)
    return value


def _duration(name: str, value: float | timedelta | None) -> float | None:
    if value is None:
        return None
    try:
        duration_s = seconds(value)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(f"{name} is a number of seconds or a timedelta, got {value!r}") from exc
    if not 0 <= duration_s < 1e10:
        raise ConfigurationError(f"{name} is a number of seconds from 0 to 10^10, got {value!r}")
    return duration_s


def _expires_s(expires: float | datetime | None) -> float | None:
    if not isinstance(expires, datetime):
        return expires
    return max(0.0, epoch_from(expires) - time.time())
