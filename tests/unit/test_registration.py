"""What registration makes of a class, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entitycelery import Entity, handler, query
from entitycelery.entity_type import RESERVED_NAMES, EntityType
from entitycelery.exceptions import ConfigurationError, UnknownEntityType, UnknownOperation
from entitycelery.registry import Registry


def entity_class(name: str = "Account", module: str = "shop.entities", **members: Any) -> type[Entity]:
    return type(name, (Entity,), {"__module__": module, "__annotations__": {}, **members})


@handler
def touch(self: Any) -> None: ...


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_field_that_shadows_a_reserved_name_is_refused(name: str) -> None:
    shadowing = entity_class(__annotations__={name: int}, **{name: 0})

    with pytest.raises(ConfigurationError, match=rf"Account\.{name} shadows a reserved name"):
        EntityType(shadowing)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
@pytest.mark.parametrize("member", [touch, query(lambda self: 1), lambda self: 1], ids=["handler", "query", "method"])
def test_a_method_that_shadows_a_reserved_name_is_refused(name: str, member: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Account\.{name} shadows a reserved name"):
        EntityType(entity_class(**{name: member}))


def test_the_reserved_names_are_few_so_that_fields_may_be_called_what_people_call_them() -> None:
    assert {"turn", "ref", "expect", "remind", "reply_later"} == RESERVED_NAMES
    fields = dict.fromkeys(["id", "status", "state", "version", "key", "name", "type", "args"], "")

    kind = EntityType(type("Account", (Entity,), {"__annotations__": dict.fromkeys(fields, str), **fields}))

    assert set(kind.model.fields) == set(fields)


def test_two_types_of_one_name_are_refused_naming_both_modules() -> None:
    registry = Registry()
    registry.add(EntityType(entity_class(module="shop.entities")))

    with pytest.raises(ConfigurationError, match=r"two entity types are named 'Account'.*shop\.entities.*bank\.models"):
        registry.add(EntityType(entity_class(module="bank.models")))


def test_a_name_of_a_shared_type_is_taken_whichever_is_registered_first() -> None:
    for first_is_shared in (True, False):
        shared = Registry()
        registries = [shared, Registry(shared)]
        first, second = registries if first_is_shared else reversed(registries)
        first.add(EntityType(entity_class(module="one")))

        with pytest.raises(ConfigurationError, match="two entity types are named 'Account'"):
            second.add(EntityType(entity_class(module="two")))


def test_a_class_whose_module_is_imported_again_replaces_itself() -> None:
    registry = Registry()
    registry.add(EntityType(entity_class()))
    again = EntityType(entity_class())

    registry.add(again)

    assert registry.get("Account") is again


def test_a_type_is_known_by_its_aliases_too() -> None:
    registry = Registry()
    kind = EntityType(entity_class(), name="Konto", aliases=("Account", "Acct"))
    registry.add(kind)

    assert {registry.get(name) for name in ("Konto", "Account", "Acct")} == {kind}
    assert list(registry) == [kind]


def test_an_alias_that_is_anothers_name_is_refused() -> None:
    registry = Registry()
    registry.add(EntityType(entity_class("Account")))

    with pytest.raises(ConfigurationError, match="two entity types are named 'Account'"):
        registry.add(EntityType(entity_class("Konto"), aliases=("Account",)))


def test_a_refused_type_leaves_nothing_behind() -> None:
    registry = Registry()
    registry.add(EntityType(entity_class("Account")))
    with pytest.raises(ConfigurationError):
        registry.add(EntityType(entity_class("Konto"), aliases=("Account",)))

    with pytest.raises(UnknownEntityType, match=r"no entity type 'Konto' is registered.*it knows: Account"):
        registry.get("Konto")


def test_handlers_that_share_a_name_are_refused_naming_both() -> None:
    named = handler(name="touch")(lambda self: None)

    with pytest.raises(ConfigurationError, match=r"Account: (other and touch|touch and other) are both named 'touch'"):
        EntityType(entity_class(touch=touch, other=named))


def test_operations_are_known_by_their_wire_names() -> None:
    kind = EntityType(entity_class(touch=touch, greet=handler(name="hello")(lambda self: None)))

    assert set(kind.operations) == {"touch", "hello"}
    assert kind.operation_of("greet") is kind.operation("hello")
    with pytest.raises(UnknownOperation, match="Account has no operation 'greet'; it has: hello, touch"):
        kind.operation("greet")


def test_handlers_are_inherited_and_can_be_overridden() -> None:
    class Base(Entity):
        @handler
        def one(self) -> int:
            return 1

        @handler
        def two(self) -> int:
            return 2

    class Derived(Base):
        @handler
        def two(self) -> int:
            return 22

    kind = EntityType(Derived)

    assert set(kind.operations) == {"one", "two"}
    assert kind.operation("two").function(Derived()) == 22


def bad_options() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"name": "my account"}, "an entity type is named by"),
        ({"aliases": ("a b",)}, "an entity type is named by"),
        ({"on_failure": "retry"}, "on_failure is 'skip' or 'block', got 'retry'"),
        ({"mailbox_capacity": 0}, "mailbox_capacity must be at least 1"),
        ({"state_version": 0}, "state_version must be at least 1"),
    ]


@pytest.mark.parametrize(("options", "why"), bad_options(), ids=lambda value: str(value)[:30])
def test_bad_options_are_refused_by_name(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        EntityType(entity_class(), **options)


@pytest.mark.parametrize(
    ("name", "view"), [("Account", "state_account"), ("shop.Order-2", "state_shop_order_2"), ("_x", "state__x")]
)
def test_the_view_of_a_type_is_named_after_it(name: str, view: str) -> None:
    assert EntityType(entity_class(), name=name).view_name == view


def retry_of(decorate: Callable[..., Any], **options: Any) -> Any:
    return EntityType(entity_class(work=decorate(**options)(lambda self: None))).operation("work").options.retry


def test_retry_options_are_celerys() -> None:
    plain = retry_of(handler)
    assert (plain.autoretry_for, plain.max_retries, plain.retry_backoff_s, plain.exponential) == ((), 3, 1.0, True)

    slow = retry_of(
        handler, autoretry_for=[OSError], retry_backoff=5, retry_backoff_max=60, retry_jitter=False, max_retries=None
    )
    assert (slow.autoretry_for, slow.max_retries, slow.retry_backoff_s) == ((OSError,), None, 5.0)
    assert (slow.retry_backoff_max_s, slow.retry_jitter) == (60.0, False)

    assert retry_of(handler, retry_backoff=False).exponential is False
