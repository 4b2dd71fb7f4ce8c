"""One handler as the runtime sees it: its wire name, its typed arguments and result, its retry options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from entitycelery import codec
from entitycelery.exceptions import ConfigurationError, MalformedMessage, SerializationFailed
from entitycelery.limits import NO_LIMITS, Limits


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed attempt is tried again. The names are Celery's, except that durations say their unit."""

    autoretry_for: tuple[type[BaseException], ...] = ()
    max_retries: int | None = 3
    retry_backoff_s: float = 1.0
    exponential: bool = True
    retry_backoff_max_s: float = 600.0
    retry_jitter: bool = True

    def delay_s(self, attempt: int, jitter: Callable[[float, float], float]) -> float:
        """Seconds until the next attempt: Celery's exponential back-off with full jitter."""
        factor = 2 ** max(0, min(attempt, 40)) if self.exponential else 1
        delay_s = min(self.retry_backoff_max_s, self.retry_backoff_s * factor)
        return jitter(0.0, delay_s) if self.retry_jitter and self.exponential else delay_s


class HandlerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `@handler(...)` was given."""

    name: str | None = None
    retry: RetryPolicy = RetryPolicy()
    turn_timeout_s: float | None = None
    throws: tuple[type[BaseException], ...] = ()


class Operation:
    """A handler of an entity type, ready to encode calls and decode messages."""

    def __init__(self, type_name: str, attribute: str, function: Callable[..., Any], options: HandlerOptions) -> None:
        self.type_name = type_name
        self.attribute = attribute
        self.name = options.name or attribute
        self.label = f"{type_name}.{self.name}"
        self.function = function
        self.options = options
        self.is_async = inspect.iscoroutinefunction(function)
        hints = _hints_of(function, self.label)
        self._parameters = _parameters_of(function, self.label)
        self._positional = tuple(p.name for p in self._parameters if p.kind is not p.KEYWORD_ONLY)
        self._names = tuple(p.name for p in self._parameters)
        try:
            arguments = msgspec.defstruct(
                "Arguments",
                [_argument(parameter, hints.get(parameter.name, Any)) for parameter in self._parameters],
                kw_only=True,
                forbid_unknown_fields=True,
            )
            self._arguments: msgspec.json.Decoder[Any] = msgspec.json.Decoder(arguments)
            self._result: msgspec.json.Decoder[Any] = msgspec.json.Decoder(hints.get("return", Any))
        except TypeError as exc:
            raise ConfigurationError(f"an annotation of {self.label} is of no type that JSON can carry: {exc}") from exc

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its arguments."""
        return self._names

    @property
    def required(self) -> int:
        """How many arguments it needs."""
        return sum(parameter.default is parameter.empty for parameter in self._parameters)

    def continued_with(self, value: object) -> bytes:
        """The JSON of the arguments with which it goes on from a signal: the value first, if it takes any."""
        return msgspec.json.encode({self._names[0]: value} if self._names else {})

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The canonical JSON of a call's named arguments, checked against the annotations.

        Raises:
            MalformedMessage: The arguments do not fit; the message names the argument.
        """
        named = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional):
            raise MalformedMessage(f"{self.label} takes {len(self._positional)} positional arguments, got {len(args)}")
        for name in kwargs.keys() & named.keys():
            raise MalformedMessage(f"{self.label} got argument {name!r} twice", argument=name)
        named.update(kwargs)
        try:
            data = codec.to_canonical_json(named, f"the arguments of {self.label}")
        except SerializationFailed as exc:
            raise self._unencodable(named, exc) from exc
        self.decode(data)
        return data

    def decode(self, data: bytes | str) -> dict[str, Any]:
        """The named arguments of a message, typed as annotated.

        Raises:
            MalformedMessage: They do not fit the handler as it is now.
        """
        try:
            arguments = self._arguments.decode(data)
        except codec.DECODING_ERRORS as exc:
            if not isinstance(exc, msgspec.ValidationError):
                raise MalformedMessage(f"the arguments of {self.label} are not JSON: {codec.said(exc)}") from exc
            name, sentence = codec.place_of(exc)
            raise MalformedMessage(
                f"argument {name!r} of {self.label}: {sentence}" if name else f"arguments of {self.label}: {sentence}",
                argument=name,
            ) from exc
        return {name: value for name in self._names if (value := getattr(arguments, name)) is not msgspec.UNSET}

    def encode_result(self, result: object, limits: Limits = NO_LIMITS) -> str:
        """A handler's result as JSON, checked against its return annotation.

        Raises:
            SerializationFailed: It cannot be written, is not what the annotation says, or larger than the limits.
        """
        data = codec.to_json(result, f"the result of {self.label}")
        if complaint := limits.against_payload(data):
            raise SerializationFailed(f"the result of {self.label}: {complaint}")
        try:
            self._result.decode(data)
        except codec.DECODING_ERRORS as exc:
            raise SerializationFailed(f"the result of {self.label}: {codec.said(exc)}") from exc
        return data.decode()

    def decode_result(self, data: str) -> Any:
        """The result of a reply, typed as the handler's return annotation.

        Raises:
            SerializationFailed: The handler returned something else when it was handled.
        """
        try:
            return self._result.decode(data)
        except codec.DECODING_ERRORS as exc:
            raise SerializationFailed(f"the stored result of {self.label}: {codec.said(exc)}") from exc

    def _unencodable(self, named: dict[str, Any], error: SerializationFailed) -> MalformedMessage:
        for name, value in named.items():
            try:
                codec.to_canonical_json(value, "it")
            except SerializationFailed as exc:
                return MalformedMessage(f"argument {name!r} of {self.label}: {exc}", argument=name)
        return MalformedMessage(str(error))


def _hints_of(function: Callable[..., Any], label: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as exc:
        raise ConfigurationError(f"an annotation of {label} cannot be resolved: {exc}") from exc


def _parameters_of(function: Callable[..., Any], label: str) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(
                f"{label} takes {parameter}: a message carries named arguments, so name each parameter"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigurationError(
                f"{label} takes {parameter.name!r} by position only: a message carries named arguments, so drop the '/'"
            )
    return parameters


def _argument(parameter: inspect.Parameter, annotation: Any) -> tuple[Any, ...]:
    # A default belongs to the handler that will run, not to the message: left out here, filled in there.
    if parameter.default is parameter.empty:
        return parameter.name, annotation
    return parameter.name, annotation | msgspec.UnsetType if annotation is not Any else Any, msgspec.UNSET
