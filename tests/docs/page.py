"""Runs the blocks of one page, in order, in a process and a folder of their own.

    python -m tests.docs.page docs/quickstart.md FOLDER [SHOWN=ACTUAL ...]

A `python` block that begins with `# name.py` is that file. The other ones share one namespace; there, a statement
that ends in `# => value` must give that value, one that ends in `# raises Error: text` that exception. In a `console`
block `$ ` begins a command, whose output follows; `celery ... worker` stays until the page ends or starts it anew.
`SHOWN=ACTUAL` puts the servers of a test run in place of those that the page names.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg2

from entitycelery.app import current_entities
from tests.docs import commands
from tests.docs.blocks import ROOT, Block, blocks_of
from tests.docs.shown import check_output
from tests.waiting import eventually

_FILE = re.compile(r"# ([\w/]+\.py)$")
_COMMENT = re.compile(r"#\s(=>|raises)\s(.+)$")


class Page:
    """One run of one page; the current folder is its home."""

    def __init__(self, page: Path, replaced: Mapping[str, str]) -> None:
        self._page = page
        self._replaced = replaced
        self._namespace: dict[str, Any] = {"__name__": "__page__"}
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._rows: list[str] | None = None

    def run(self) -> None:
        """Run every block.

        Raises:
            AssertionError: Something else came out than the page says.
        """
        try:
            for block in blocks_of(self._page):
                if block.not_run is None:
                    rows, self._rows = self._rows, None
                    getattr(self, f"_run_{block.language}")(block, rows)
        finally:
            for worker in self._workers.values():
                _kill(worker)

    def _where(self, block: Block) -> str:
        return f"{self._page}:{block.line}"

    def _actual(self, text: str) -> str:
        for shown, actual in self._replaced.items():
            text = text.replace(shown, actual)
        return text

    def _as_shown(self, text: str) -> str:
        for shown, actual in self._replaced.items():
            text = text.replace(actual, shown)
        return text

    # Python

    def _run_python(self, block: Block, _rows: object) -> None:
        text = self._actual(block.text)
        file = _FILE.match(block.first_line)
        if file:
            self._write(Path(file[1]), text)
            return
        tree = ast.parse(text)
        lines = text.splitlines()
        ast.increment_lineno(tree, block.line)
        for statement in tree.body:
            last = lines[(statement.end_lineno or 0) - block.line - 1]
            comment = _COMMENT.search(last)
            self._run_statement(f"{self._page}:{statement.lineno}", statement, comment)

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
        module = ".".join(path.with_suffix("").parts)
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        # A file written twice within a second would else be taken from its compiled form.
        sys.dont_write_bytecode = True
        importlib.import_module(module)

    def _run_statement(self, where: str, statement: ast.stmt, comment: re.Match[str] | None) -> None:
        kind, wanted = comment.groups() if comment else (None, "")
        if kind == "raises":
            said = self._raised(statement)
            assert said.startswith(wanted), f"{where}: shown: raises {wanted}\nbut it was: {said}"
            return
        if kind == "=>":
            assert isinstance(statement, ast.Expr), f"{where}: only an expression has a value to show"
            value = eval(compile(ast.Expression(statement.value), where, "eval"), self._namespace)
            check_output(where, wanted, repr(value))
            return
        exec(compile(ast.Module([statement], []), where, "exec"), self._namespace)

    def _raised(self, statement: ast.stmt) -> str:
        try:
            exec(compile(ast.Module([statement], []), "page", "exec"), self._namespace)
        except Exception as exc:  # noqa: BLE001 - whatever the page says
            return f"{type(exc).__name__}: {exc}"
        return "nothing"

    # Shell

    def _run_bash(self, block: Block, _rows: object) -> None:
        self._command(self._where(block), f"set -e\n{block.text}")

    def _run_console(self, block: Block, _rows: object) -> None:
        for command, output in _commands(block.text):
            where = self._where(block)
            if re.search(r"\bcelery .*\bworker\b", command):
                self._start_worker(where, command, output)
                continue
            actual = self._command(where, command)
            if output:
                check_output(where, output, self._as_shown(actual), numbers_vary=block.numbers_vary)

    def _command(self, where: str, command: str) -> str:
        if command.startswith("make "):
            return self._make(where, command)
        code, output = commands.run(self._actual(command))
        assert code == 0, f"{where}: {command}: exit code {code}\n{output}"
        return output

    def _make(self, where: str, command: str) -> str:
        # What make would do first, an environment of its own, is this one already.
        # And this may be run by make, which would tell the one in the page that it is not the first.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        dry = subprocess.run(
            [*command.split(), "-n"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert dry.returncode == 0, f"{where}: {command}: {dry.stderr}"
        last = dry.stdout.strip().splitlines()[-1].split()
        return self._command(where, "entitycelery demo") if last[1:] == ["demo"] else dry.stdout

    def _start_worker(self, where: str, command: str, output: str) -> None:
        if command in self._workers:
            _kill(self._workers.pop(command))
        log = Path(f"worker-{len(self._workers)}.log")
        with log.open("wb") as out:
            self._workers[command] = subprocess.Popen(
                ["bash", "-c", f"exec {self._actual(command)}"],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with _shown_on_failure(where, log):
            eventually(lambda: "[entities]" in log.read_text().rpartition("\n\n")[0])
            if output:
                check_output(where, output, self._as_shown(log.read_text()))

    # SQL

    def _run_sql(self, block: Block, _rows: object) -> None:
        url = current_entities().store.url
        if url.get_backend_name() == "sqlite":
            connection: Any = sqlite3.connect(str(url.database))
        else:
            connection = psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
        with contextlib.closing(connection), connection:
            cursor = connection.cursor()
            for statement in filter(None, map(str.strip, block.text.split(";"))):
                cursor.execute(statement)
            columns = [column[0] for column in cursor.description or ()]
            self._rows = [" | ".join(map(str, row)) for row in (columns, *cursor.fetchall())]

    def _run_text(self, block: Block, rows: list[str] | None) -> None:
        """A picture; or, after a query, its rows."""
        if rows is not None:
            check_output(self._where(block), block.text, "\n".join(rows))


def _commands(text: str) -> list[tuple[str, str]]:
    """Each command with the output that follows it."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        found.append((command.strip(), output))
    return found


def _kill(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)


@contextlib.contextmanager
def _shown_on_failure(where: str, log: Path) -> Iterator[None]:
    try:
        yield
    except AssertionError as exc:
        raise AssertionError(f"{where}: {exc}\nthe worker said:\n{log.read_text()}") from exc


def main() -> None:
    page, folder, *replaced = sys.argv[1:]
    os.chdir(folder)
    sys.path.insert(0, folder)
    Page(Path(page), dict(text.split("=", 1) for text in replaced)).run()


if __name__ == "__main__":
    main()
