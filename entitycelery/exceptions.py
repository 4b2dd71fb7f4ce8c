"""Every error that entitycelery raises.

The class says what happened, the fields say who, `reason` is the stable string that is stored and logged,
`transient` says whether trying again can help.

    EntityError
    ├── ConfigurationError        a setting, a registration or a call that can never work
    ├── StoreUnavailable          the SQL store did not answer or refused            (transient)
    ├── SchemaMissing             the store has no, or another, schema
    ├── TransportFailed           the broker did not take a wake-up                   (transient)
    ├── MalformedMessage          arguments that do not fit the handler
    ├── SerializationFailed       a value that cannot be written as JSON
    ├── StateConflict             a stored or assigned state that cannot be loaded
    ├── KeyConflict               a key used again with other arguments
    ├── AlreadyProcessing         a key that is taken, sent with unique="reject"      (transient)
    ├── MailboxFull               the mailbox is at its capacity                      (transient)
    ├── SendTimeout               a send that could not be stored in time             (transient)
    ├── UnknownEntityType         no such type in this app
    ├── UnknownOperation          no such handler in this type
    ├── UnknownSchedule           no such schedule
    ├── UnknownSingleton          no singleton of this name has ever run
    ├── UnknownSignal             no signal's token of this cluster
    ├── UnknownWorkflow           no workflow of this key has begun
    ├── WorkflowCancelled         the workflow was cancelled
    ├── NonDeterminism            a body that does not do again what its journal says
    ├── SignalFailed              a signal that somebody failed
    │   ├── SignalTimeout         it was not completed in time
    │   └── SignalCancelled       it was cancelled
    ├── RunnerNotRegistered       no living runner of this name
    ├── AskRefused                `ask` where waiting could never end, or must not be done
    └── NoResult                  the message has no result to give
        ├── ReplyTimeout          not answered yet                                    (transient)
        ├── UnknownMessage        never stored, or its reply is purged
        ├── MessageExpired        it expired before its turn
        ├── MessageCancelled      it was cancelled before its turn
        └── HandlerFailed         its handler failed; carries what it raised
            ├── TurnTimeout       its turn ran longer than allowed
            └── Quarantined       it ended its process too often
"""

from __future__ import annotations

from typing import Any, ClassVar


class EntityError(Exception):
    """Base of the tree. `address`, `message_id` and `shard` are None where they do not apply."""

    reason: ClassVar[str] = "EntityError"
    transient: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        address: str | None = None,
        message_id: str | None = None,
        shard: str | None = None,
    ) -> None:
        super().__init__(message)
        self.address = address
        self.message_id = message_id
        self.shard = shard

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only fields do not survive the default pickling of exceptions.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(cls: type[EntityError], args: tuple[Any, ...], fields: dict[str, Any]) -> EntityError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigurationError(EntityError):
    """A setting, a registration or a call that can never work as written."""

    reason = "ConfigurationError"


class StoreUnavailable(EntityError):
    """The SQL store did not answer, or refused the statement; the driver's error is the cause."""

    reason = "PersistenceFailed"
    transient = True


class SchemaMissing(EntityError):
    """The store has no schema for this cluster, or an older or newer one; the message gives the command."""

    reason = "SchemaMissing"


class TransportFailed(EntityError):
    """The broker did not take a wake-up. The message itself is stored; the sweep will find it."""

    reason = "TransportFailed"
    transient = True


class MalformedMessage(EntityError):
    """Arguments that do not fit the handler; `argument` names the one at fault where there is one."""

    reason = "MalformedMessage"

    def __init__(self, message: str, *, argument: str | None = None, **who: str | None) -> None:
        super().__init__(message, **who)
        self.argument = argument


class SerializationFailed(EntityError):
    """A value that cannot be written as JSON: an argument, a result or a state."""

    reason = "SerializationFailed"


class StateConflict(EntityError):
    """A state that cannot be loaded by the class as it is now; the message names the field."""

    reason = "StateConflict"


class KeyConflict(EntityError):
    """The key was used before for the same address and operation, with other arguments."""

    reason = "KeyConflict"


class AlreadyProcessing(EntityError):
    """The key is taken and the send said `unique="reject"`; nothing was stored. `message_id` is what holds the key."""

    reason = "AlreadyProcessing"
    transient = True


class MailboxFull(EntityError):
    """The entity has as many pending messages as its type allows; nothing was stored."""

    reason = "MailboxFull"
    transient = True


class SendTimeout(EntityError):
    """The send could not be stored within `entity_send_timeout_s`."""

    reason = "SendTimeout"
    transient = True


class UnknownEntityType(EntityError):
    """No entity type of this name is registered with the app."""

    reason = "UnknownEntityType"


class UnknownOperation(EntityError):
    """The entity type has no handler of this name."""

    reason = "UnknownOperation"


class UnknownSchedule(EntityError, LookupError):
    """No schedule has this name."""

    reason = "UnknownSchedule"


class UnknownSingleton(EntityError, LookupError):
    """No singleton of this name has ever run in the cluster."""

    reason = "UnknownSingleton"


class UnknownSignal(EntityError, LookupError):
    """The text is no token that this cluster made."""

    reason = "UnknownSignal"


class UnknownWorkflow(EntityError, LookupError):
    """No workflow of this key has begun."""

    reason = "UnknownWorkflow"


class WorkflowCancelled(EntityError):
    """The workflow was cancelled."""

    reason = "WorkflowCancelled"


class NonDeterminism(EntityError):
    """The body of a workflow called something else than its journal says; the sentence names both."""

    reason = "NonDeterminism"


class SignalFailed(EntityError):
    """Somebody failed the signal; the sentence is theirs."""

    reason = "SignalFailed"


class SignalTimeout(SignalFailed):
    """The signal was not completed within its `timeout_s`."""

    reason = "SignalTimeout"


class SignalCancelled(SignalFailed):
    """The signal was cancelled."""

    reason = "SignalCancelled"


class RunnerNotRegistered(EntityError, LookupError):
    """No living runner is called so, or it does not host what it should."""

    reason = "RunnerNotRegistered"


class AskRefused(EntityError):
    """`ask` inside a turn: the entity would wait for mail that is sent only when its turn ends."""

    reason = "AskRefused"


class NoResult(EntityError):
    """The message has no result to give; the subclass says why."""

    reason = "NoResult"


class ReplyTimeout(NoResult, TimeoutError):
    """Not answered yet. The message stays stored and will be handled; ask again with its id."""

    reason = "ReplyTimeout"
    transient = True


class UnknownMessage(NoResult, LookupError):
    """No message of this id was ever stored, or its reply is older than `entity_reply_retention_s`."""

    reason = "UnknownMessage"


class MessageExpired(NoResult):
    """The message expired before its turn came."""

    reason = "Expired"


class MessageCancelled(NoResult):
    """The message was cancelled before its turn came."""

    reason = "Cancelled"


class HandlerFailed(NoResult):
    """The handler failed and its exception class cannot be imported here.

    `exception_type` is its dotted name, `remote_traceback` the text of its traceback.
    """

    reason = "HandlerFailed"

    def __init__(
        self, message: str, *, exception_type: str = "", remote_traceback: str = "", **who: str | None
    ) -> None:
        super().__init__(message, **who)
        self.exception_type = exception_type
        self.remote_traceback = remote_traceback


class TurnTimeout(HandlerFailed):
    """The turn ran longer than its `turn_timeout_s`."""

    reason = "TurnTimeout"


class Quarantined(HandlerFailed):
    """The message ended the process that handled it `entity_max_crashes` times and was set aside."""

    reason = "Quarantined"
