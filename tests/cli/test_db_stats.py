"""db stats: how much there is in the store."""

from __future__ import annotations

import pytest

from tests.cli.support import Project, run_process, script
from tests.waiting import eventually


def test_pending_mail_dead_letters_and_replies_are_counted(fresh: Project) -> None:
    fresh("db", "upgrade")
    empty = fresh("db", "stats", "--output", "json").json
    assert (empty["waiting"], empty["delayed"], empty["dead_letters"], empty["replies"]) == (0, 0, 0, {})
    assert empty["oldest_waiting_s"] is None
    assert empty["bytes"] > 0

    with fresh.worker():
        for amount in ("1", "2"):
            assert fresh("ask", "Account/a", "deposit", amount).code == 0
        assert fresh("ask", "Account/a", "fail", "broke").code == 1
        assert fresh("ask", "Note/n", "copy", "nosuch").code == 1
    fresh("send", "Account/a", "deposit", "3")
    fresh("send", "Account/a", "deposit", "4", "--delay", "1h")
    stats = fresh("db", "stats", "--output", "json").json

    assert (stats["waiting"], stats["delayed"], stats["retried"], stats["dead_letters"]) == (1, 1, 0, 1)
    assert 0 <= stats["oldest_waiting_s"] < 60
    assert stats["replies"] == {"dead": 1, "done": 2, "failed": 1}
    assert {"dead_letter", "message", "reply", "state"} <= {table["table"] for table in stats["tables"]}


def test_tables_show_their_rows_and_on_postgresql_their_dead_ones(fresh: Project) -> None:
    fresh("db", "upgrade")
    for _ in range(3):
        fresh("send", "Account/a", "deposit", "1")

    def counted() -> bool:
        [table] = [
            table for table in fresh("db", "stats", "--output", "json").json["tables"] if table["table"] == "message"
        ]
        if fresh.database_url.startswith("postgresql"):
            assert table["dead_rows"] == 0
            assert table["bytes"] > 8_000
        # PostgreSQL's own statistics come a moment later.
        return bool(table["rows"] == 3)

    eventually(counted, every_s=0.2)


def test_text_has_a_line_for_each_count_and_a_table(fresh: Project) -> None:
    fresh("db", "upgrade")
    fresh("send", "Account/a", "deposit", "1")

    counts, tables = fresh("db", "stats").out.split("\n\n")

    assert [line.split()[0] for line in counts.splitlines()] == [
        "waiting",
        "oldest_waiting_s",
        "delayed",
        "retried",
        "dead_letters",
        "bytes",
    ]
    assert tables.splitlines()[0].split() == ["TABLE", "ROWS", "DEAD", "ROWS", "BYTES"]


@pytest.mark.parametrize("idle", ["sqlite"], indirect=True)
def test_it_needs_no_app(idle: Project) -> None:
    counted = run_process(
        [script("entitycelery"), "--database-url", idle.database_url, "--cluster", cluster_of(idle), "db", "stats"],
        idle.folder,
    )

    assert counted.code == 0
    assert counted.out.startswith("waiting")


def cluster_of(project: Project) -> str:
    """The cluster that the project's app names."""
    text = (project.folder / f"{project.name}.py").read_text()
    return text.partition('entity_cluster="')[2].partition('"')[0]
