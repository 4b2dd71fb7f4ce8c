"""The typed state of an entity class: which fields it has, how they are written, loaded and upgraded.

An entity is an ordinary class. Beside it stands a hidden msgspec struct of the same fields, which does the typed
decoding. Fields that the stored state has and the class does not are kept as they are and written back.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar, get_origin, get_type_hints

import msgspec

from entitycelery import codec
from entitycelery.exceptions import ConfigurationError, SerializationFailed, StateConflict
from entitycelery.limits import NO_LIMITS, Limits

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
F = TypeVar("F", bound=Callable[..., Any])

_IMMUTABLE = (str, bytes, int, float, bool, type(None))


def upgrade(*, from_version: int) -> Callable[[F], F]:
    """Mark a function `(state: dict) -> dict` of an entity class as the step from `from_version` to the next.

    It runs when a state of that version is loaded, on the plain JSON value, before the fields are checked.
    Write it without `self`.
    """
    if from_version < 1:
        raise ConfigurationError(f"@upgrade(from_version=...) starts at 1, got {from_version}")

    def mark(function: F) -> F:
        plain = function.__func__ if isinstance(function, staticmethod) else function
        plain.__entity_upgrade_from__ = from_version  # type: ignore[attr-defined]
        return staticmethod(plain)  # type: ignore[return-value]

    return mark


class Field(NamedTuple):
    """A declared state field and how a new entity gets its value; `is_constant`: always an equal one."""

    name: str
    factory: Callable[[], Any]
    has_default: bool
    is_constant: bool = True


def fields_of(cls: type) -> dict[str, Field]:
    """The state fields that a class and its bases declare, in order; ClassVar and _private names are none."""
    fields: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        for name, annotation in inspect.get_annotations(base).items():
            if name.startswith("_") or _is_class_var(annotation):
                continue
            fields[name] = _field(name, base.__dict__.get(name, msgspec.UNSET))
    return fields


def _is_class_var(annotation: object) -> bool:
    if isinstance(annotation, str):
        return annotation.partition("[")[0].rpartition(".")[2] == "ClassVar"
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _field(name: str, default: Any) -> Field:
    if isinstance(default, msgspec._core.Field):
        if default.default_factory is not msgspec.NODEFAULT:
            return Field(name, default.default_factory, True, is_constant=False)
        default = msgspec.UNSET if default.default is msgspec.NODEFAULT else default.default
    if default is msgspec.UNSET:
        return Field(name, lambda: None, False)
    if isinstance(default, _IMMUTABLE):
        return Field(name, lambda: default, True)
    return Field(name, lambda: copy.deepcopy(default), True)


class StateModel:
    """Loads and writes the state of one entity class.

    Raises:
        ConfigurationError: A field has no default or one that does not fit it, or its annotation cannot be stored or
            resolved.
    """

    def __init__(self, cls: type, type_name: str, fields: Mapping[str, Field], state_version: int) -> None:
        for field in fields.values():
            if not field.has_default:
                raise ConfigurationError(
                    f"{type_name}.{field.name} needs a default: an entity begins to exist with its first message"
                )
        self.cls = cls
        self.type_name = type_name
        self.fields = tuple(fields)
        self.state_version = state_version
        self.annotations = _resolved_hints(cls, type_name, self.fields)
        self._upgrades = _upgrades_of(cls, type_name, state_version)
        try:
            self._struct = msgspec.defstruct(
                f"{cls.__name__}State",
                [(f.name, self.annotations[f.name], msgspec.field(default_factory=f.factory)) for f in fields.values()],
                kw_only=True,
            )
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._struct)
        except TypeError as exc:
            raise ConfigurationError(f"the state of {type_name} has a field that cannot be stored: {exc}") from exc
        self._check_defaults({field.name: field.factory() for field in fields.values() if field.is_constant})

    def new(self) -> Any:
        """An entity that has no stored state yet."""
        return self._instance(self._struct(), {})

    def load(self, stored: str | bytes, state_version: int) -> Any:
        """The entity of a stored state, upgraded when it is of an older version.

        Raises:
            StateConflict: The state does not fit the class; the message names the field.
        """
        if state_version > self.state_version:
            raise StateConflict(
                f"a state of {self.type_name} was written as version {state_version}, "
                f"this code knows versions up to {self.state_version}"
            )
        if state_version < self.state_version:
            stored = self._upgraded(stored, state_version)
        try:
            decoded = self._decoder.decode(stored)
            known = self._struct.__struct_fields__
            extra = {name: raw for name, raw in codec.raw_fields(stored).items() if name not in known}
        except codec.DECODING_ERRORS as exc:
            raise StateConflict(self._misfit("a stored state", exc)) from exc
        return self._instance(decoded, extra)

    def why_unreadable(self, state_version: int) -> str | None:
        """Why states of this version cannot be loaded; None if they can, as far as versions tell."""
        if state_version > self.state_version:
            return f"written as version {state_version}, this code knows versions up to {self.state_version}"
        missing = [version for version in range(state_version, self.state_version) if version not in self._upgrades]
        return f"there is no @upgrade(from_version={missing[0]})" if missing else None

    def dump(self, entity: Any, limits: Limits = NO_LIMITS) -> bytes:
        """The entity's state as JSON, checked to load again.

        Raises:
            SerializationFailed: A value cannot be written, and the message names the field; or the limits forbid it.
            StateConflict: A field holds what its annotation does not allow, or was deleted.
        """
        values = entity.__dict__
        try:
            data = codec.to_json({name: values[name] for name in self.fields}, "the state")
        except KeyError as exc:
            raise StateConflict(f"the handler deleted the field {exc} of {self.type_name}") from exc
        except SerializationFailed as exc:
            raise self._unwritable(values) or exc from exc
        try:
            self._decoder.decode(data)
        except codec.DECODING_ERRORS as exc:
            raise StateConflict(self._misfit("the state that the handler left", exc)) from exc
        data = codec.merged(data, values["_extra_fields"])
        if complaint := limits.against_state(data):
            raise SerializationFailed(f"the state of {self.type_name}: {complaint}")
        return data

    def _check_defaults(self, constants: Mapping[str, Any]) -> None:
        # Else the first turn of every entity would fail for it.
        for name, value in constants.items():
            what = f"the default of {self.type_name}.{name}"
            try:
                self._decoder.decode(codec.to_json({name: value}, what))
            except SerializationFailed as exc:
                raise ConfigurationError(str(exc)) from exc
            except codec.DECODING_ERRORS as exc:
                raise ConfigurationError(f"{what} does not fit its annotation: {exc}") from exc

    def _unwritable(self, values: Mapping[str, Any]) -> SerializationFailed | None:
        for name in self.fields:
            try:
                codec.to_json(values[name], f"field {name!r} of {self.type_name}")
            except SerializationFailed as exc:
                return exc
        return None

    def _instance(self, struct: msgspec.Struct, extra: dict[str, msgspec.Raw]) -> Any:
        entity: Any = object.__new__(self.cls)
        entity.__dict__.update(msgspec.structs.asdict(struct), _extra_fields=extra)
        return entity

    def _upgraded(self, stored: str | bytes, state_version: int) -> bytes:
        try:
            value = codec.from_json(stored)
        except codec.DECODING_ERRORS as exc:
            raise StateConflict(self._misfit("a stored state", exc)) from exc
        for version in range(state_version, self.state_version):
            step = self._upgrades.get(version)
            if step is None:
                raise StateConflict(
                    f"a state of {self.type_name} has version {version}: there is no @upgrade(from_version={version})"
                )
            try:
                value = step(value)
            except Exception as exc:
                raise StateConflict(f"{self.type_name}: @upgrade(from_version={version}) failed: {exc!r}") from exc
        try:
            return codec.to_json(value, f"the upgraded state of {self.type_name}")
        except SerializationFailed as exc:
            raise StateConflict(str(exc)) from exc

    def _misfit(self, what: str, exc: Exception) -> str:
        if not isinstance(exc, msgspec.ValidationError):
            return f"{what} of {self.type_name} is not JSON: {codec.said(exc)}"
        field, sentence = codec.place_of(exc)
        return f"{what} of {self.type_name} does not fit field {field or '(top level)'!r}: {sentence}"


def _resolved_hints(cls: type, type_name: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as exc:
        raise ConfigurationError(f"an annotation of {type_name} cannot be resolved: {exc}") from exc
    return {name: hints[name] for name in fields}


def _upgrades_of(cls: type, type_name: str, state_version: int) -> dict[int, Upgrade]:
    steps: dict[int, Upgrade] = {}
    for name in dir(cls):
        member = getattr(cls, name, None)
        version = getattr(member, "__entity_upgrade_from__", None)
        if version is None:
            continue
        if version in steps:
            raise ConfigurationError(f"{type_name} has two functions for @upgrade(from_version={version})")
        if version >= state_version:
            raise ConfigurationError(
                f"{type_name}.{name} upgrades from version {version}, but state_version is {state_version}"
            )
        steps[version] = member  # type: ignore[assignment]
    return steps
