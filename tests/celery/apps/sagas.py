"""An app with workflows of all kinds of calls. Each can be told to kill its own worker at any of its places."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from celery import Celery

from entitycelery import AsyncWorkflow, Entity, EntityCelery, Workflow, handler

FOLDER = Path(os.environ["BANK_FOLDER"])

app = Celery("sagas")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))
entities = EntityCelery(app)


@entities.register
class Ledger(Entity):
    entries: list[str] = []

    @handler
    def write(self, entry: str) -> int:
        self.entries.append(entry)
        return len(self.entries)

    @handler
    def refuse(self, entry: str) -> None:
        raise ValueError(entry)


def at(place: str) -> None:
    """Pull the plug of the whole worker, if a test wants it to end here; once."""
    try:
        (FOLDER / f"{place}.kill").unlink()
    except FileNotFoundError:
        return
    os.killpg(0, signal.SIGKILL)


def act(flow_id: str, what: str) -> str:
    at(f"before {what}")
    done = f"{flow_id} {what}"
    at(f"after {what}")
    return done


def undo(name: str, number: int) -> None:
    at(f"before undo {number}")
    Ledger.ref(name).write.send(f"undo {number}")
    at(f"after undo {number}")


@app.task
def pack(name: str) -> str:
    return act(name, "packed")


@app.task(bind=True, max_retries=3)
def shaky(self: object, fails: bool) -> str:
    if fails:
        raise ValueError("no parcel")
    if self.request.retries < 2:  # type: ignore[attr-defined]
        raise self.retry(countdown=0.05)  # type: ignore[attr-defined]
    return "packed"


@entities.workflow
def leg(flow: Workflow, name: str) -> str:
    flow.sleep(0.05)
    flow.ask(Ledger.ref(name).write, "leg")
    return flow.step(act, name, "leg")


@entities.workflow
def saga(flow: Workflow, name: str, fails: bool) -> list[str]:
    """Ten steps, a sleep, an entity, a child, a task, a race, and in the end either all or nothing."""
    done = []
    for number in range(5):
        done.append(flow.step(act, name, str(number)))
        flow.send(Ledger.ref(name).write, f"do {number}")
        flow.compensate(undo, name, number)
    flow.sleep(0.05)
    done.append(flow.child(leg, name))
    done.append(flow.options(timeout_s=5).task(pack, name))
    _, goes_on = flow.race(lambda: flow.wait("go on", bool), lambda: flow.sleep(3600))
    if goes_on:
        for number in range(5, 10):
            done.append(flow.step(act, name, str(number)))
    if fails:
        flow.ask(Ledger.ref(name).refuse, "no")
    return done


@entities.workflow
async def sends(flow: AsyncWorkflow, fails: bool = False, expires_s: float | None = None) -> list[str]:
    """A task that is tried again, and others on a queue of their own."""
    first = await flow.task(shaky, fails)
    own = {"queue": f"{app.conf.task_default_queue}.own", **({"expires": expires_s} if expires_s else {})}
    signatures = [pack.s(str(number)).set(**own) for number in range(3)]
    return [first, *await flow.gather(*[flow.task(signature) for signature in signatures])]


@entities.workflow
def fans_out(flow: Workflow, number: int) -> int:
    return len(flow.gather(*[lambda at=at: flow.task(pack.s(str(at))) for at in range(number)]))  # type: ignore[misc]


@entities.workflow
def sleeps(flow: Workflow, duration_s: float) -> float:
    flow.sleep(duration_s)
    return flow.now().timestamp()
