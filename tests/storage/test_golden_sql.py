"""Every statement that the store keeps ready, as text beside this test: a changed query is a readable diff.

After a change on purpose write them anew: ENTITY_WRITE_GOLDEN=1 make test PYTEST_ARGS="-k golden"
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from entitycelery.storage.sql.statement import Statement
from entitycelery.storage.sql.store import SqlStore

GOLDEN = Path(__file__).parent / "golden"
_POSTGRESQL = "postgresql+psycopg2://nobody@localhost/none"
_STORES = {
    "postgresql": (_POSTGRESQL, "advisory"),
    "rows": (_POSTGRESQL, "rows"),
    "sqlite": ("sqlite+pysqlite:////nowhere/none.db", "advisory"),
}
_CLAUSES = re.compile(
    r"(?<!DELETE) (?=(?:SELECT|FROM|WHERE|ORDER BY|ON CONFLICT|RETURNING|UNION ALL|VALUES|SET|CROSS JOIN|JOIN|USING)\b)"
)


def statements(store: SqlStore) -> Iterator[tuple[str, Statement]]:
    """All statements of a store, named by the noun that owns them."""
    nouns = {id(noun): noun for noun in vars(store).values() if type(noun).__module__.startswith("entitycelery.")}
    for noun in sorted(nouns.values(), key=lambda noun: type(noun).__name__):
        for attribute, value in sorted(getattr(noun, "__dict__", {}).items()):
            several = value if isinstance(value, tuple) else (value,)
            for index, one in enumerate(one for one in several if isinstance(one, Statement)):
                number = f" {index + 1}" if len(several) > 1 else ""
                yield f"{type(noun).__name__}.{attribute}{number}", one


def texts(dialect: str) -> dict[str, str]:
    """The statements of a dialect by name. Nothing is connected to."""
    url, lock_mode = _STORES[dialect]
    store = SqlStore(
        make_url(url), cluster="golden", shards_per_group=64, connections=1, timeout_s=1, lock_mode=lock_mode
    )
    with closing(store):
        return {name: _CLAUSES.sub("\n", statement) for name, statement in statements(store)}


def written(dialect: str) -> str:
    """The golden text of a dialect; of PostgreSQL with rows for locks, what is not the same with advisory locks."""
    known = texts("postgresql") if dialect == "rows" else {}
    parts = [f"-- {name}\n{text};" for name, text in texts(dialect).items() if known.get(name) != text]
    return "\n\n".join(parts) + "\n"


@pytest.mark.parametrize("dialect", sorted(_STORES))
def test_statements_are_the_golden_ones(dialect: str) -> None:
    file = GOLDEN / f"{dialect}.sql"
    now = written(dialect)

    if os.environ.get("ENTITY_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(now)

    assert file.read_text() == now


def test_golden_statements_are_all_statements_of_the_hot_paths() -> None:
    names = set(re.findall(r"^-- (\S+)", written("postgresql"), re.MULTILINE))

    assert {"Mailboxes._candidates", "Mailboxes._read", "Messages._insert", "Commits._finish", "Replies._read"} <= names
