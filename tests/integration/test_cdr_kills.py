"""kill -9 of the proxy under calls of every kind: no record lost, none double, durations honest (invariants 3 and 4).

The short form of `python -m loadtest cdrkills`, which also says what is owed (loadtest/lives.py).
"""

from __future__ import annotations

import pytest

from cdr.facts import Record
from loadtest.killing import UNSUNK, kill_again_and_again, kill_at_steps, steps_of
from loadtest.lives import Killed, Life, compare_lives, report_of
from loadtest.truth import CallTruth, Event, Ledger

KILLS = 4
SHORT_STEPS = ("journal.written", "publisher.sent")
READER_STEP = "consumer.acknowledged"


async def test_proxy_killed_at_random_moments_owes_no_record() -> None:
    found = await kill_again_and_again(KILLS, rate=10, seed=4, callers=30)
    assert report_of(found).faults == []
    assert len(found.lives) == KILLS + 1
    assert found.records >= found.attempts > 20
    assert found.certain > 0


async def test_proxy_that_dies_at_a_step_owes_no_record() -> None:
    found = await kill_at_steps([*SHORT_STEPS, READER_STEP], times=(2,), rate=5, seed=4, callers=20)
    assert report_of(found).faults == []
    assert {life.step for life in found.lives} >= set(SHORT_STEPS)
    assert found.readers == 3, "a consumer, a pull into a file and one to standard output"


def test_every_step_of_journal_publisher_and_readers_is_taken() -> None:
    with_sink, without = steps_of()
    assert without == [UNSUNK]
    assert {"journal.written", "journal.synced", "publisher.sent", "publisher.acknowledged"} <= set(with_sink)
    assert {"consumer.read", "consumer.written", "consumer.acknowledged", "pull.named", "pull.given_back"} <= set(with_sink)


class World:
    """Two lives, and a call that was answered and ended in the first one."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.found = Killed("by hand", 0)
        self.caller = self.ledger.open("alice", "caller", "c1", "03023125001")
        start = self.caller.started_at_ms
        self.found.lives = [Life(start - 1000, ready=True), Life(start + 60_000, ready=True)]
        self.ledger.note("alice", "invites", "c1")
        self.ledger.note("alice", "got", "c1", "100")
        self.callee = self.ledger.open("trunk", "callee", "c1", "+493023125001")
        self.ledger.note("alice", "got", "c1", "200")
        self.caller.status = 200
        at = self.caller.started_at
        self.callee.answered_at, self.caller.answered_at = at + 1.0, at + 1.01
        self.caller.ended_at, self.callee.ended_at = at + 11.0, at + 11.01
        self.caller.released_by = self.callee.released_by = "caller"
        self.ledger.events.append(Event(at + 11.01, start + 11_010, "trunk", "hears end", "c1", "t1 0"))
        self.ledger.events.append(Event(at + 11.03, start + 11_030, "alice", "hears end", "c1", "t1 200"))

    def record(self, seq: int = 1, **fields: object) -> Record:
        start = self.caller.started_at_ms
        known: dict[str, object] = {
            "id": f"node1-{seq}", "node": "node1", "seq": seq, "direction": "outgoing", "call_id": "c1", "setup_at_ms": start,
            "answer_at_ms": start + 1005, "end_at_ms": start + 11_005, "billable_ms": 10_000, "duration_ms": 11_005,
            "status": 200, "released_by": "caller", "end_reason": "normal", "to_tag": "t1",
        }  # fmt: skip
        return Record(**{**known, **fields})  # type: ignore[arg-type]

    def compare(self, *records: Record, calls: tuple[CallTruth, ...] = ()) -> Killed:
        self.found.entries = len(records)
        compare_lives(self.found, self.ledger, [self.caller, *calls], records)
        return self.found


def test_comparison_of_a_right_record_finds_nothing() -> None:
    world = World()
    found = world.compare(world.record())
    assert report_of(found).faults == []
    assert (found.attempts, found.records, found.certain, found.unseen) == (1, 1, 1, 0)


def test_comparison_names_what_is_lost_double_and_invented() -> None:
    assert World().compare().lost == [
        "c1: taken in life 0",
        "c1: answered 200 in life 0",
    ]
    world = World()
    found = world.compare(world.record(), world.record(2))
    assert found.double == ["c1: 2 records of life 0"]
    world = World()
    later = world.caller.started_at_ms + 61_000
    found = world.compare(world.record(), world.record(3, setup_at_ms=later, answer_at_ms=None, billable_ms=0, end_reason="x"))
    assert found.invented == ["c1: no INVITE in life 1"]
    assert found.gaps == ["1 numbers, from [2] on"]


@pytest.mark.parametrize(
    ("billed", "certain", "fault"),
    [
        (10_012, True, ""),
        (10_014, True, "was 9990 to 10010 ms"),
        (9_986, True, "was 9990 to 10010 ms"),
        (9_000, False, "of one life, and not certain"),
        (10_004, False, "not certain, 10004 ms, was 10000 ms at most"),
    ],
)
def test_comparison_of_durations_is_as_strict_as_cause_and_effect(billed: int, certain: bool, fault: str) -> None:
    world = World()
    found = world.compare(world.record(billable_ms=billed, duration_certain=certain))
    assert (fault in " ".join(found.wrong)) if fault else found.wrong == []


def test_life_that_may_have_died_between_a_bye_and_the_end_need_not_be_certain() -> None:
    """The callee heard the BYE, and the caller no answer to his."""
    world = World()
    world.ledger.events.pop()
    assert world.compare(world.record(billable_ms=9_000, duration_certain=False)).wrong == []


def test_byes_that_cross_tell_nobody_of_the_end() -> None:
    """Each party hung up before the other's BYE reached it; the caller's was answered 40 ms later."""
    for billed, faults in ((10_045, 0), (10_060, 1)):
        world = World()
        world.ledger.events.pop()
        world.ledger.events.pop()
        at, start = world.caller.started_at, world.caller.started_at_ms
        world.ledger.events.append(Event(at + 11.05, start + 11_050, "alice", "hears end", "c1", "t1 200"))
        assert len(world.compare(world.record(billable_ms=billed)).wrong) == faults


def test_call_that_no_life_took_owes_nothing() -> None:
    world = World()
    lost = world.ledger.open("bob", "caller", "c2", "03023125001")
    world.ledger.note("bob", "invites", "c2")
    world.ledger.note("bob", "got", "c2", "407")
    found = world.compare(world.record(), calls=(lost,))
    assert (found.lost, found.not_taken, found.attempts) == ([], 1, 1)
