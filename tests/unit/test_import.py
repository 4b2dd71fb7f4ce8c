"""Importing the package is cheap, and what it names is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import entitycelery

HEAVY = ["celery", "kombu", "sqlalchemy", "psycopg2", "click", "croniter"]


def modules_after(statement: str) -> set[str]:
    program = f"import sys, json\n{statement}\nprint(json.dumps(list(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    return set(json.loads(out))


@pytest.mark.parametrize(
    "statement",
    ["import entitycelery", "from entitycelery import Entity, handler, query, shared_entity, upgrade, field"],
)
def test_neither_the_package_nor_an_entity_class_imports_celery_or_sqlalchemy(statement: str) -> None:
    assert modules_after(statement) & set(HEAVY) == set()


def test_the_bare_package_imports_nothing_of_its_own() -> None:
    assert [name for name in modules_after("import entitycelery") if name.startswith("entitycelery.")] == []


@pytest.mark.parametrize("name", entitycelery.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(entitycelery, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'entitycelery' has no attribute 'Actor'"):
        entitycelery.Actor  # type: ignore[attr-defined]
