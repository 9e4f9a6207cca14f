"""Calls and records that are compared as both come: whatever their order, every difference is found."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from cdr.facts import Record
from loadtest.cut_calls import Away
from loadtest.reconcile import Matching
from loadtest.truth import CallTruth


def truth_of(number: int, *, talk_s: float = 5.0, status: int = 200) -> CallTruth:
    truth = CallTruth("mix", "caller", f"call{number}", "0302", 0.0, 0, status=status)
    if status == 200:
        truth = replace(truth, answered_at=1.0, ended_at=1.0 + talk_s, released_by="caller")
    return truth


def record_of(number: int, *, seq: int = 0, talk_ms: int = 5000, status: int = 200) -> Record:
    answered = 1 if status == 200 else None
    return Record(
        id=f"r{number}", node="n", seq=seq or number, direction="outgoing", call_id=f"call{number}", status=status,
        answer_at_ms=answered, billable_ms=talk_ms if answered else 0, released_by="caller" if answered else "callee",
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_matching_of_calls_and_records_in_any_order_finds_nothing(seed: int) -> None:
    matching = Matching()
    steps = [(what, number) for number in range(1, 200) for what in ("ended", "take")]
    random.Random(seed).shuffle(steps)
    for what, number in steps:
        if what == "ended":
            matching.ended(truth_of(number))
        else:
            matching.take(record_of(number))
    result = matching.result()
    assert result.ok, str(result)
    assert (result.attempts, result.records, matching.owed) == (199, 199, 0)


def test_matching_names_what_is_missing_unexpected_repeated_different_and_a_gap() -> None:
    matching = Matching()
    for number in (1, 2, 3, 4):
        matching.ended(truth_of(number))
    matching.take(record_of(1))
    matching.take(record_of(2, talk_ms=6000))
    matching.take(record_of(9, seq=6))
    matching.take(record_of(9, seq=7))
    matching.take(record_of(3, status=486))
    result = matching.result()
    assert not result.ok
    assert (result.missing, result.unexpected, result.repeated) == (["call4"], ["call9"], ["call9"])
    assert [text.partition(":")[0] for text in result.different] == ["call2", "call3", "call3", "call3", "call3"]
    assert result.gaps == ["n: [4, 5] of 2"]
    assert matching.owed == 1


def test_matching_of_a_record_again_after_its_call_agreed_is_unexpected_and_its_number_is_there_twice() -> None:
    matching = Matching()
    matching.ended(truth_of(1))
    matching.take(record_of(1))
    matching.take(record_of(1))
    result = matching.result()
    assert (result.unexpected, result.gaps) == (["call1"], ["n: twice [1]"])


def test_matching_of_a_call_that_the_node_may_not_have_looked_at_needs_no_record_but_a_true_one() -> None:
    matching = Matching()
    matching.ended(truth_of(1, status=503), optional=True)
    matching.ended(truth_of(2, status=503), optional=True)
    assert matching.owed == 0
    matching.take(record_of(2, seq=1, status=486))
    result = matching.result()
    assert not result.missing
    assert matching.without == 1
    assert result.different == ["call2: status 503, record 486"]


def test_matching_allows_for_the_time_that_messages_were_under_way() -> None:
    matching = Matching()
    matching.ended(truth_of(1), slack_ms=700)
    matching.take(record_of(1, talk_ms=6000))
    matching.ended(truth_of(2), slack_ms=700)
    matching.take(record_of(2, talk_ms=6200))
    assert [text.partition(":")[0] for text in matching.result().different] == ["call2"]


def cut(matching: Matching, number: int, *, talk_s: float = 5.0, optional: bool = False, status: int = 200) -> None:
    """A call of just now, under which the node died once."""
    now = time.monotonic()
    matching.away[:] = [Away(now - 10, now - 8)]
    truth = replace(truth_of(number, status=status), started_at=now - 20)
    if status == 200:
        truth = replace(truth, answered_at=now - 15, ended_at=now - 15 + talk_s)
    matching.ended(truth, optional=optional)


def test_call_under_which_the_node_died_may_have_a_record_of_each_life() -> None:
    matching = Matching()
    cut(matching, 1)
    matching.take(record_of(1, seq=1, status=500))
    matching.take(record_of(1, seq=2))
    cut(matching, 2, optional=True, status=0)
    result = matching.result()
    assert result.ok, str(result)
    assert (result.cut, matching.owed, matching.without) == (2, 0, 1)


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([], "call1: missing"),
        ([record_of(1, seq=1, status=500)], "call1: answered, and no record of it is"),
        ([record_of(1, seq=number) for number in (1, 2, 3)], "call1: 3 records, the node died 1 times"),
        ([record_of(1, seq=1, talk_ms=60_000)], "call1: billed 60000 ms, was 12400 ms at most"),
    ],
)
def test_call_under_which_the_node_died_is_owed_its_record_answer_and_length(records: list[Record], fault: str) -> None:
    matching = Matching()
    cut(matching, 1)
    assert matching.owed == 1
    for record in records:
        matching.take(record)
    assert matching.result().different == [fault]
    assert matching.owed == (not records)


def test_call_beside_the_times_without_a_node_is_compared_as_always() -> None:
    matching = Matching()
    now = time.monotonic()
    matching.away.append(Away(now - 100, now - 90))
    matching.ended(replace(truth_of(1), started_at=now - 20, answered_at=now - 15, ended_at=now - 10))
    matching.take(record_of(1, seq=1))
    matching.take(record_of(1, seq=2))
    result = matching.result()
    assert (result.cut, result.unexpected) == (0, ["call1"])
