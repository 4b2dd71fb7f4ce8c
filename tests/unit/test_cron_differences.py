"""Questions at random, put to us and to croniter, cronsim and Celery. We agree, or a declared rule says why not."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest

from entitycelery.exceptions import ConfigurationError
from tests.unit.cron_differences import Difference
from tests.unit.cron_engines import ENGINES, Answer
from tests.unit.cron_questions import question
from tests.unit.cron_rules import RULES, Rule, as_read_by, explained

# Another one each time: what it found is in the message. CRON_SEED=7 puts the same questions again.
SEED = int(os.environ.get("CRON_SEED", Random().randrange(10**6)))
QUESTIONS = int(os.environ.get("CRON_QUESTIONS", 1500))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_difference_from_another_library_is_declared(engine: str) -> None:
    print(f"CRON_SEED={SEED}")
    random = Random(f"{SEED} {engine}")
    asked = 0

    while asked < QUESTIONS:
        wanted = question(random, plain=engine == "celery")
        try:
            read = as_read_by(engine, wanted)
            difference = Difference(read, read.ours(), ENGINES[engine](wanted))
        except ConfigurationError:
            continue  # 0 0 30 2 *, which each library refuses in its own way
        asked += 1
        assert difference.ours == difference.theirs or explained(difference, engine), (
            f"{wanted}: {engine} says {difference.theirs}, we say {difference.ours}; CRON_SEED={SEED}"
        )


@pytest.mark.parametrize("name", RULES)
def test_the_example_of_a_rule_is_as_it_says(name: str) -> None:
    rule = RULES[name]

    theirs = ENGINES[rule.engine](rule.example)

    assert _local(rule.example.ours(), rule) == rule.ours
    assert _local(theirs, rule) == rule.theirs
    assert rule.ours != rule.theirs


@pytest.mark.parametrize("name", RULES)
def test_the_example_of_a_rule_is_explained_by_it_alone(name: str) -> None:
    rule = RULES[name]
    read = rule.reads(rule.example) if rule.reads else rule.example
    difference = Difference(read, read.ours(), ENGINES[rule.engine](rule.example))

    by = {
        other
        for other, each in RULES.items()
        if each.engine == rule.engine and each.explains and each.explains(difference)
    }

    assert by == (set() if rule.reads else {name})
    assert (difference.ours == difference.theirs) is (rule.reads is not None)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_that_is_a_minute_off_would_be_noticed(engine: str) -> None:
    wanted = RULES["celery-puts-off-skipped-time"].example.but(start=datetime(2026, 7, 1, tzinfo=UTC))
    right = wanted.ours()
    assert right is not None

    for wrong in (right + timedelta(minutes=1), right - timedelta(minutes=1), "never"):
        assert not explained(Difference(wanted, right, wrong), engine)


def _local(answer: Answer | None, rule: Rule) -> str | None:
    if isinstance(answer, datetime):
        return answer.astimezone(ZoneInfo(rule.example.zone)).isoformat()
    return answer
