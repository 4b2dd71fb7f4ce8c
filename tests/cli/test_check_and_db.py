"""check, and db upgrade|current|verify|sql."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg2
import pytest

from tests.cli.support import Project, Ran, run_process, script

DEAD_POSTGRES = "postgresql://postgres@127.0.0.1:1/nothing"


def db(folder: Path, url: str, *words: str) -> Ran:
    """`entitycelery db` without an app, as a process."""
    return run_process([script("entitycelery"), "--database-url", url, "db", *words], folder)


def test_check_finds_everything_in_order(idle: Project) -> None:
    checked = idle("check")

    assert checked.code == 0
    rows = [line.split(maxsplit=2) for line in checked.out.splitlines()]
    assert [(name, verdict) for name, verdict, _ in rows] == [
        (name, "ok") for name in ("settings", "store", "schema", "broker", "types")
    ]
    assert "Account (5 operations), Note (2 operations)" in checked.out


@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_check_is_readable_for_scripts(idle: Project, output: str) -> None:
    checked = idle("check", "--output", output)

    findings = checked.json if output == "json" else checked.jsonl
    assert {finding["check"]: finding["ok"] for finding in findings} == dict.fromkeys(
        ("settings", "store", "schema", "broker", "types"), True
    )


def test_check_without_schema_is_exit_code_1_and_gives_the_command(fresh: Project) -> None:
    checked = fresh("check", "--output", "json")

    assert checked.code == 1
    [failed] = [finding for finding in checked.json if not finding["ok"]]
    assert failed["check"] == "schema"
    assert "entitycelery db upgrade" in failed["detail"]


def test_check_without_a_store_is_exit_code_69_and_says_the_rest(idle: Project) -> None:
    checked = idle("--database-url", DEAD_POSTGRES, "check", "--output", "json")

    assert checked.code == 69
    verdicts = {finding["check"]: finding["ok"] for finding in checked.json}
    assert verdicts == {"settings": True, "store": False, "broker": True, "types": True}


def test_check_without_a_broker_is_exit_code_69(fresh: Project) -> None:
    edit(fresh, 'app.conf.update(broker_url="redis://127.0.0.1:1/0", broker_transport=None)')
    assert fresh("db", "upgrade").code == 0

    checked = fresh("check", "--output", "json")

    assert checked.code == 69
    assert [finding["check"] for finding in checked.json if not finding["ok"]] == ["broker"]


def test_check_with_a_bad_setting_is_exit_code_1_and_names_it(fresh: Project) -> None:
    edit(fresh, "app.conf.entity_batch_size = 0")

    checked = fresh("check")

    assert checked.code == 1
    assert "entity_batch_size must be greater than 0" in checked.out


def test_check_without_types_is_exit_code_1(fresh: Project) -> None:
    text = (fresh.folder / f"{fresh.name}.py").read_text()
    (fresh.folder / f"{fresh.name}.py").write_text(text.partition("@entities.register")[0])
    fresh("db", "upgrade")

    checked = fresh("check")

    assert checked.code == 1
    assert "no entity type is registered" in checked.out


def edit(project: Project, line: str) -> None:
    with (project.folder / f"{project.name}.py").open("a") as file:
        file.write(f"\n{line}\n")


def test_upgrade_makes_schema_and_views_once(fresh: Project) -> None:
    first = fresh("db", "upgrade", "--output", "json").json
    second = fresh("db", "upgrade", "--output", "json").json

    assert first["applied"]
    assert (second["applied"], second["views"]) == ([], first["views"])
    assert fresh("db", "upgrade").out.splitlines()[0].endswith(": up to date")


def test_current_shows_which_migrations_are_applied(fresh: Project) -> None:
    before = fresh("db", "current", "--output", "json").json
    fresh("db", "upgrade")
    after = fresh("db", "current", "--output", "jsonl").jsonl

    assert {migration["applied"] for migration in before} == {False}
    assert {migration["applied"] for migration in after} == {True}
    assert [m["migration"] for m in before] == [m["migration"] for m in after]
    assert fresh("db", "current").out.splitlines()[0].split() == ["MIGRATION", "APPLIED"]


def test_verify_tells_a_missing_schema_from_a_good_one(fresh: Project) -> None:
    missing = fresh("db", "verify")
    fresh("db", "upgrade")
    good = fresh("db", "verify")

    assert missing.code == 69
    assert "entitycelery db upgrade" in missing.complaint
    assert (good.code, good.err) == (0, "")
    assert fresh("db", "verify", "--output", "json").json["ok"] is True


def test_a_send_without_schema_is_exit_code_69_where_nobody_may_create_it(fresh: Project) -> None:
    edit(fresh, "app.conf.entity_auto_migrate = False")

    refused = fresh("send", "Account/alice", "deposit", "5")

    assert refused.code == 69
    assert "entitycelery db upgrade" in refused.complaint


def test_a_store_that_does_not_answer_is_exit_code_69(idle: Project) -> None:
    for words in (["state", "Account/alice"], ["list"], ["db", "upgrade"]):
        refused = idle("--database-url", DEAD_POSTGRES, *words)

        assert refused.code == 69
        assert "Traceback" not in refused.err
        assert refused.complaint


def test_db_needs_no_app(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}"

    assert db(tmp_path, url, "upgrade").code == 0
    assert db(tmp_path, url, "verify").out.strip().endswith("own.db: ok")
    by_variable = run_process([script("entitycelery"), "db", "verify"], tmp_path, ENTITY_DATABASE_URL=url)
    assert by_variable.code == 0


def test_db_without_app_and_store_says_what_is_missing(tmp_path: Path) -> None:
    refused = run_process([script("entitycelery"), "db", "upgrade"], tmp_path)

    assert refused.code == 2
    assert refused.complaint == "which store? Give --database-url or ENTITY_DATABASE_URL, or the app with -A"


def test_the_sql_script_makes_the_schema_that_verify_accepts(fresh: Project) -> None:
    script = fresh("db", "sql")
    assert script.code == 0
    if fresh.database_url.startswith("sqlite"):
        sqlite3.connect(fresh.folder / "store.db").executescript(script.out)
    else:
        connection = psycopg2.connect(fresh.database_url)
        with connection, connection.cursor() as cursor:
            cursor.execute(script.out)
        connection.close()

    assert fresh("db", "verify").code == 0


def test_the_sql_script_needs_no_server(tmp_path: Path) -> None:
    printed = db(tmp_path, DEAD_POSTGRES, "sql")

    assert printed.code == 0
    assert "CREATE TABLE" in printed.out


def test_cluster_chooses_another_schema(fresh: Project) -> None:
    if fresh.database_url.startswith("sqlite"):
        pytest.skip("a SQLite file holds one cluster")
    fresh("db", "upgrade")

    assert fresh("--cluster", "another", "db", "verify").code == 69
