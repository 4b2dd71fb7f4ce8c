"""Exit codes: the one place that says which exception ends the command line with which code."""

from __future__ import annotations

import traceback

import click

from entitycelery.exceptions import (
    AlreadyProcessing,
    AskRefused,
    ConfigurationError,
    EntityError,
    KeyConflict,
    MalformedMessage,
    ReplyTimeout,
    RunnerNotRegistered,
    SchemaMissing,
    SendTimeout,
    StoreUnavailable,
    TransportFailed,
    UnknownEntityType,
    UnknownMessage,
    UnknownOperation,
    UnknownSchedule,
    UnknownSignal,
    UnknownSingleton,
    UnknownWorkflow,
)

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
TIMED_OUT = 4
KEY_CONFLICT = 5
KEY_TAKEN = 6
UNAVAILABLE = 69
INTERRUPTED = 130

_LONGEST_SENTENCE = 4_000

MEANINGS = {
    OK: "ok",
    FAILED: "the operation failed",
    USAGE: "usage: a word, an argument or a setting is wrong",
    NOT_FOUND: "not found: no such message, entity, schedule, signal, singleton, workflow or runner",
    TIMED_OUT: "timed out: not answered yet, the message stays stored",
    KEY_CONFLICT: "key conflict: the key was used with other arguments",
    KEY_TAKEN: "key taken: a message sent with --unique holds it",
    UNAVAILABLE: "the store or the broker is unavailable, or has no schema",
    INTERRUPTED: "interrupted by Ctrl-C",
}

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, INTERRUPTED),
    (ConfigurationError, USAGE),
    (MalformedMessage, USAGE),
    (UnknownEntityType, USAGE),
    (UnknownOperation, USAGE),
    (AskRefused, USAGE),
    (UnknownMessage, NOT_FOUND),
    (UnknownSchedule, NOT_FOUND),
    (UnknownSingleton, NOT_FOUND),
    (UnknownSignal, NOT_FOUND),
    (UnknownWorkflow, NOT_FOUND),
    (RunnerNotRegistered, NOT_FOUND),
    (ReplyTimeout, TIMED_OUT),
    (KeyConflict, KEY_CONFLICT),
    (AlreadyProcessing, KEY_TAKEN),
    (StoreUnavailable, UNAVAILABLE),
    (SchemaMissing, UNAVAILABLE),
    (TransportFailed, UNAVAILABLE),
    (SendTimeout, UNAVAILABLE),
)


class CommandFailed(Exception):
    """A command's own verdict: a code, a sentence for people, and details for --verbose."""

    def __init__(self, code: int, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.code = code
        self.details = details


def code_of(exc: BaseException) -> int:
    """The exit code of an exception."""
    if isinstance(exc, CommandFailed):
        return exc.code
    return next((code for cls, code in _CODES if isinstance(exc, cls)), FAILED)


def report(exc: BaseException, *, verbose: bool) -> int:
    """Say on stderr what happened, in one sentence, and return the exit code."""
    click.echo(f"entitycelery: {shortened(_sentence(exc))}", err=True)
    details = exc.details if isinstance(exc, CommandFailed) else "".join(traceback.format_exception(exc))
    if verbose and details:
        click.echo(details.rstrip(), err=True)
    return code_of(exc)


def shortened(sentence: str) -> str:
    """A sentence without the middle of a very long word that it quotes, so that its end can be read."""
    if len(sentence) <= _LONGEST_SENTENCE:
        return sentence
    half = _LONGEST_SENTENCE // 2
    return f"{sentence[:half]} ... {sentence[-half:]}"


def epilog() -> str:
    """The codes for the help text."""
    lines = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
    return f"\b\nExit codes:\n{lines}"


def _sentence(exc: BaseException) -> str:
    if isinstance(exc, KeyboardInterrupt):
        return "interrupted"
    if isinstance(exc, EntityError | CommandFailed):
        return str(exc)
    return f"{type(exc).__name__}: {exc}"
