"""Testing entities: a store in memory, a clock that is moved by hand, and everything on the test's own thread.

    with EntityTestEnvironment(entities) as env:
        Account.ref("alice").deposit.ask(100)
        env.skip(days=7)

The real store and the real drains, on SQLite in memory; what is replaced is the broker, the worker and the time.
"""

from __future__ import annotations

from entitycelery.testing.crashes import crash_everywhere
from entitycelery.testing.environment import EntityTestEnvironment, SentMessage
from entitycelery.testing.replays import WorkflowTestEnvironment

__all__ = ["EntityTestEnvironment", "SentMessage", "WorkflowTestEnvironment", "crash_everywhere"]
