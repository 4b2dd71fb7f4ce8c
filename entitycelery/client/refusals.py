"""Sends that are refused: what the store refused, as the error that its sender gets, and what nobody can wait for."""

from __future__ import annotations

from entitycelery.effects import Send
from entitycelery.exceptions import AlreadyProcessing, ConfigurationError, KeyConflict, MailboxFull
from entitycelery.message import AppendOutcome, NewMessage


def refuse(message: NewMessage, outcome: AppendOutcome, message_id: str) -> None:
    """Raise what the outcome of a send means for its sender, if it was refused.

    Args:
        message_id: The message that answers it; one that is refused because its key is taken, that which holds the key.

    Raises:
        KeyConflict, AlreadyProcessing, MailboxFull: It was refused.
    """
    who = {"address": str(message.address), "message_id": message_id}
    if outcome is AppendOutcome.TAKEN:
        raise AlreadyProcessing(
            f"{message.address} {message.operation}: the key is taken by message {message_id}", **who
        )
    if outcome is AppendOutcome.CONFLICT:
        raise KeyConflict(
            f"{message.address} {message.operation}: the key was used before with other arguments; "
            "a key belongs to one message",
            **who,
        )
    if outcome is AppendOutcome.FULL:
        raise MailboxFull(
            f"{message.address} has {message.capacity} pending messages, which is its mailbox_capacity", **who
        )


def refuse_connection(send: Send) -> None:
    """Refuse to wait for what a caller's transaction may store.

    Raises:
        ConfigurationError: The call has a connection.
    """
    if send.options.connection is not None:
        raise ConfigurationError(
            "ask with options(connection=...) would wait for a message that is stored only when your transaction "
            "commits: use send, commit, and then Sent.result()"
        )
