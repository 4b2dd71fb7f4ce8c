"""`send -` and `send --file`: many messages, one JSON object a line, stored batch by batch in the order of the lines.

The first bad line ends it: all lines before it are stored, nothing of it and of what follows is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import click

from entitycelery.exceptions import AlreadyProcessing, EntityError, KeyConflict, MailboxFull, SendTimeout

from .exits import INTERRUPTED, USAGE, CommandFailed, code_of
from .lines import BadLineError, Line, line_of
from .output import as_json
from .session import Session

LINES_AT_ONCE = 500


class BulkSend:
    """One run over many lines. `done` is the number of the last line up to which everything is stored."""

    def __init__(self, session: Session, *, batch: int, check: bool) -> None:
        self._session = session
        self._entities = session.entities()
        self._batch = batch
        self._check = check
        self._records: list[dict[str, Any]] = []
        self.done = 0
        self.stored = 0

    def run(self, lines: Iterable[bytes], skip: int, bar: Bar | None = None) -> None:
        """Send the lines behind the first `skip`.

        Raises:
            CommandFailed: A line is bad or was refused, the store is away, or somebody pressed Ctrl-C; the sentence
                says what is stored and how to go on.
        """
        self.done = skip
        numbered = itertools.islice(enumerate(lines, start=1), skip, None)
        try:
            while chunk := list(itertools.islice(numbered, self._batch)):
                good, bad = self._read(chunk)
                if bar is not None:
                    bar.step_aside()
                self._store(good)
                if bad is not None:
                    number, error = bad
                    self.done = number - 1
                    raise self._failed(code_of(error) if isinstance(error, EntityError) else USAGE, number, error)
                self.done = chunk[-1][0]
                if bar is not None:
                    bar.update(len(chunk))
        except KeyboardInterrupt:
            raise CommandFailed(INTERRUPTED, f"interrupted; {self._how_to_go_on(certain=False)}") from None
        if self._session.output == "json" and not self._check:
            click.echo(as_json(self._records))

    def _read(self, chunk: Sequence[tuple[int, bytes]]) -> tuple[list[Line], tuple[int, Exception] | None]:
        """The lines up to the first bad one, and that one."""
        good: list[Line] = []
        for number, data in chunk:
            if not data.strip():
                continue
            try:
                good.append(line_of(self._entities, number, data))
            except (BadLineError, EntityError) as exc:
                return good, (number, exc)
        return good, None

    def _store(self, lines: Sequence[Line]) -> None:
        if not lines or self._check:
            self.stored += len(lines)
            return
        try:
            sent = self._entities.send_many([line.call for line in lines])
        except (KeyConflict, AlreadyProcessing, MailboxFull) as exc:
            if len(lines) == 1:
                self.done = lines[0].number - 1
                raise self._failed(code_of(exc), lines[0].number, exc) from exc
            # One was refused, so none is stored. One by one the lines before it are, and its number is known.
            for line in lines:
                self._store([line])
            return
        except SendTimeout as exc:
            lost = f"lines {lines[0].number} to {lines[-1].number}: {exc}"
            raise CommandFailed(code_of(exc), f"{lost}; {self._how_to_go_on(certain=False)}") from exc
        self.stored += len(sent)
        self.done = lines[-1].number
        for line, one in zip(lines, sent, strict=True):
            self._print(line, one.id)

    def _print(self, line: Line, message_id: str) -> None:
        record = {"line": line.number, "id": message_id, "address": line.address, "operation": line.operation}
        if self._session.output == "text":
            click.echo(message_id)
        elif self._session.output == "jsonl":
            click.echo(as_json(record))
        else:
            self._records.append(record)

    def _failed(self, code: int, number: int, error: Exception) -> CommandFailed:
        return CommandFailed(code, f"line {number}: {error}; {self._how_to_go_on(certain=True)}")

    def _how_to_go_on(self, *, certain: bool) -> str:
        if self._check:
            return f"{self.stored} line(s) before it are good, nothing is stored"
        doubt = "" if certain else " at least; what was under way may be stored too, so only lines with keys are safe"
        return f"{self.stored} message(s) are stored{doubt}; go on with --skip-lines {self.done}"


def send_lines(session: Session, name: str, *, skip: int, batch: int, check: bool) -> None:
    """Send the lines of a file, or of standard input for `-`."""
    run = BulkSend(session, batch=batch, check=check)
    with _opened(name) as file, _progress(file, name, skip) as bar:
        run.run(file, skip, bar)
    what = "line(s) are good, nothing is stored" if check else "message(s) are stored"
    if check or sys.stderr.isatty():
        click.echo(f"{run.stored} {what}", err=True)


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    if not Path(name).is_file():
        raise CommandFailed(USAGE, f"there is no file {name}")
    with Path(name).open("rb") as file:
        yield file


def _progress(file: IO[bytes], name: str, skip: int) -> AbstractContextManager[Bar | None]:
    # A bar in a log file or a pipe would be in the way.
    if not sys.stderr.isatty():
        return nullcontext()
    lines = None
    if name != "-":
        lines = max(0, sum(1 for _ in file) - skip)
        file.seek(0)
    return Bar(lines)


class Bar:
    """A progress bar on standard error, which steps aside for what is printed on the same terminal."""

    def __init__(self, lines: int | None) -> None:
        # Without an end there is nothing to fill: then it only counts.
        self._bar: Any = click.progressbar(
            None if lines is not None else iter(int, 1),
            length=lines,
            label="lines",
            file=sys.stderr,
            show_pos=True,
            show_percent=lines is not None,
            show_eta=lines is not None,
            bar_template="%(label)s  [%(bar)s]  %(info)s" if lines is not None else "%(label)s  %(info)s",
        )

    def __enter__(self) -> Bar:
        self._bar.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._bar.__exit__(*exc_info)

    def update(self, lines: int) -> None:
        self._bar.update(lines)

    def step_aside(self) -> None:
        """Make room for ids on the same terminal; the next update draws the bar below them."""
        if sys.stdout.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
