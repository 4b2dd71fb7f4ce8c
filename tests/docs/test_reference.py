"""The reference pages list what there is, no more and no less."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from cli.exits import MEANINGS
from cli.group import COMMANDS
from entitycelery import exceptions
from entitycelery.exceptions import EntityError
from entitycelery.settings import Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from tests.docs.blocks import ROOT

_ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


def _rows(page: str, heading: str = "") -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (ROOT / "docs" / "reference" / page).read_text()
    text = text.partition(f"\n{heading}\n")[2] if heading else text
    table = next(part for part in text.strip().split("\n\n") if part.startswith("| "))
    return [re.split(r" ?(?<!\\)\| ?", row) for row in _ROW.findall(table)[1:]]


def test_settings_page_has_every_setting_with_its_default() -> None:
    fields = {f"`entity_{field.name}`": f"`{field.default!r}`" for field in dataclasses.fields(Settings)}

    listed = {row[0]: row[1] for row in _rows("settings.md")}

    assert listed == fields


def test_errors_page_has_every_error_with_its_base_reason_and_transience() -> None:
    errors = [cls for _, cls in inspect.getmembers(exceptions, inspect.isclass) if issubclass(cls, EntityError)]
    expected = {
        f"`{cls.__name__}`": [f"`{cls.__base__.__name__}`", f"`{cls.reason}`", "yes" if cls.transient else "no"]
        for cls in errors
        if cls is not EntityError and cls.__base__ is not None
    }
    for name in ("`ReplyTimeout`", "`UnknownMessage`"):
        expected[name][0] = "`NoResult`"

    listed = {row[0]: row[1:4] for row in _rows("errors.md")}

    assert listed == expected


def test_tree_in_the_docstring_of_exceptions_has_every_error() -> None:
    drawn = re.findall(r"[├└]── (\w+)", exceptions.__doc__ or "")

    errors = [name for name, cls in inspect.getmembers(exceptions, inspect.isclass) if issubclass(cls, EntityError)]

    assert sorted([*drawn, "EntityError"]) == sorted(errors)


def test_command_line_page_has_every_command() -> None:
    listed = {_CODE.findall(row[0])[0].split()[0] for row in _rows("command-line.md", "## Commands")}

    assert listed == set(COMMANDS)


def test_command_line_page_has_every_exit_code_with_its_meaning() -> None:
    listed = {int(code): meaning for code, meaning in (row[:2] for row in _rows("command-line.md", "## Exit codes"))}

    assert listed == MEANINGS


@pytest.fixture
def columns(store_url: str) -> Iterator[dict[str, set[str]]]:
    """The columns of every table of a store."""
    store = SqlStore(driver_url(store_url), cluster="default", shards_per_group=64, connections=2, timeout_s=10)
    with closing(store):
        store.schema.upgrade()
        if store.dialect.name == "sqlite":
            statement = (
                "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c "
                "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%'"
            )
        else:
            statement = (
                "SELECT table_name, column_name FROM information_schema.columns "
                "WHERE table_schema = 'entity_default' AND table_name IN "
                "(SELECT tablename FROM pg_tables WHERE schemaname = 'entity_default')"
            )
        with store.engines.use("looking") as conn:
            found: dict[str, set[str]] = {}
            for table, column in conn.exec_driver_sql(statement):
                found.setdefault(table, set()).add(column)
        yield found


def test_storage_page_has_every_table_with_its_columns(columns: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "reference" / "storage.md").read_text()
    others = "PostgreSQL" if "process" in columns["lock"] else "SQLite"
    described = {
        table: {
            name
            for row in _rows("storage.md", f"### {table}")
            if not row[-1].startswith(f"{others}: ")
            for name in _CODE.findall(row[0])
        }
        for table in re.findall(r"^### (\w+)$", text, re.MULTILINE)
    }

    # A table all of whose columns are another database's is not there.
    assert {table: names for table, names in described.items() if names} == columns
