"""The calls that references offer.

The verb (`send`, `ask`, `asend`, `aask`, `delay`) takes the handler's arguments and nothing else; what belongs to the
call goes to `.options(...)`. Only so can both be typed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

import msgspec

from entitycelery.address import Address
from entitycelery.clock import epoch_from, seconds
from entitycelery.effects import CallOptions, Send
from entitycelery.exceptions import ConfigurationError
from entitycelery.operation import Operation
from entitycelery.port import Port
from entitycelery.sent import AsyncResult, Sent, known_id
from entitycelery.unique import UniqueRule, checked_rule

__all__ = ["AsyncResult", "Call", "Prepared", "Sent", "checked_instant", "checked_s", "prepared_of"]

P = ParamSpec("P")
R = TypeVar("R")


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
        unique: UniqueRule | None = None,
        unique_for_s: float | timedelta | None = None,
        delay_s: float | timedelta | None = None,
        deliver_at: datetime | None = None,
        expires_s: float | timedelta | None = None,
        timeout_s: float | timedelta | None = None,
        connection: Any = None,
    ) -> Call[P, R]:
        """This call with options; those that are not given stay as they are.

        Args:
            key: Same address, operation and key is the same message: it is stored once and has one reply.
            unique: The key is a mutex instead, taken from the send until the message has ended, whatever the arguments.
                Where it is taken, `reject` raises AlreadyProcessing, `replace` gives the message that holds it these
                arguments, `queue` runs once behind what runs, `debounce` does so when nobody has sent for `delay_s`.
            unique_for_s: The key is taken for so many seconds at least; what is not rejected waits for that.
            delay_s: Not before so many seconds after it is stored.
            deliver_at: Not before this aware instant.
            expires_s: Not after so many seconds after it is stored; then its reply says expired.
            timeout_s: Longest wait of an `ask`.
            connection: Your SQLAlchemy connection or session to the same database: the message exists if and only if
                your transaction commits.
        """
        given: dict[str, Any] = {
            "key": _key(key),
            "unique": checked_rule(unique),
            "unique_for_s": checked_s("unique_for_s", unique_for_s),
            "delay_s": checked_s("delay_s", delay_s),
            "deliver_at": checked_instant("deliver_at", deliver_at),
            "expires_s": checked_s("expires_s", expires_s),
            "timeout_s": checked_s("timeout_s", timeout_s),
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
            AlreadyProcessing: The key is taken, and the call says `unique="reject"`.
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
        call = self.options(delay_s=countdown, deliver_at=eta)
        if isinstance(expires, datetime):
            call = call._with(msgspec.structs.replace(call._options, expires_at=checked_instant("expires", expires)))
        else:
            call = call.options(expires_s=expires)
        if task_id is not None:
            call = call._with(msgspec.structs.replace(call._options, task_id=task_id))
        return call._delayed(call._encoded(tuple(args), kwargs or {}))

    def takes(self, argument: str) -> bool:
        """Whether the operation has an argument of this name."""
        return argument in self._operation.parameters

    @property
    def operation(self) -> Operation:
        return self._operation

    def identity(self) -> tuple[Address, str, CallOptions]:
        """Address, operation and options: with a key or a task id among them, they say which message is meant."""
        return self._address, self._operation.name, self._options

    def _with(self, options: CallOptions) -> Call[P, R]:
        return Call(self._operation, self._address, self._port, self._capacity, options)

    def _delayed(self, send: Send) -> AsyncResult[R]:
        port = self._port()
        [message_id] = port.send([send])
        handle: AsyncResult[R] = port.async_result(known_id(message_id, self._operation), self._operation.decode_result)
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


def prepared_of(call: object) -> Send:
    """A call without arguments, ready to be sent.

    Raises:
        ConfigurationError: It is no call.
        MalformedMessage: It needs arguments.
    """
    if not isinstance(call, Call):
        raise ConfigurationError(f"expected a call such as self.bill or self.bill.prepare(5), got {call!r}")
    return call.prepare().send


def own_operation(call: object, address: Address, what: str) -> Operation:
    """The operation of a bare handler of the entity at this address, such as `self.bill`.

    Raises:
        ConfigurationError: It is something else; the sentence says what it is for.
    """
    if not isinstance(call, Call) or call.identity() != (address, call.identity()[1], CallOptions()):
        raise ConfigurationError(f"{what} takes a handler of the entity itself, as self.bill, got {call!r}")
    return call.operation


def _key(value: str | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"a key is a str, got {value!r}")
    return value


def checked_instant(name: str, value: datetime | None) -> datetime | None:
    """`value`, when it names a moment.

    Raises:
        ConfigurationError: It has no time zone, or is no datetime.
    """
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} is an aware datetime, got {value!r}")
    epoch_from(value)
    return value


def checked_s(name: str, value: float | timedelta | None) -> float | None:
    """`value` in seconds.

    Raises:
        ConfigurationError: It is negative, too long, or no duration.
    """
    if value is None:
        return None
    try:
        duration_s = seconds(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise ConfigurationError(f"{name} is a number of seconds or a timedelta, got {value!r}") from exc
    if not 0 <= duration_s < 1e10:
        raise ConfigurationError(f"{name} is a number of seconds from 0 to 10^10, got {value!r}")
    return duration_s
