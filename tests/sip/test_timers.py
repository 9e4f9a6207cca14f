"""Timer values (RFC 3261 §17 table 4, RFC 6026, RFC 4320) and the queue of deadlines against a naive model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.sip.timers import WIDTH_S, Alarm, TimerQueue, Timers


def test_timers_default_values_are_those_of_table_4() -> None:
    timers = Timers()
    values = {name: getattr(timers, name) for name in "abdefghijklm"}
    assert values == {
        "a": 0.5, "b": 32, "d": 32, "e": 0.5, "f": 32, "g": 0.5, "h": 32, "i": 5, "j": 32, "k": 5, "l": 32, "m": 32,
    }  # fmt: skip


def test_timers_short_t1_keeps_timer_d_at_32_seconds() -> None:
    assert Timers(t1=0.1).d == 32  # §17.1.1.2: "at least 32 seconds"
    assert Timers(t1=1.0).d == 64


@pytest.mark.parametrize(("t1", "t2", "trying"), [(0.5, 4.0, 3.5), (1.0, 4.0, 3.0), (4.0, 4.0, 0.0), (0.5, 3.0, 3.5)])
def test_timers_non_invite_trying_is_when_timer_e_reaches_t2(t1: float, t2: float, trying: float) -> None:
    assert Timers(t1=t1, t2=t2).non_invite_trying == trying  # RFC 4320 §4.1


@pytest.mark.parametrize("bad", [{"t1": 0.0}, {"t1": 5.0}, {"t4": 0.0}, {"t1": -1.0}, {"t1": math.nan}])
def test_timers_nonsense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="timers need"):
        Timers(**bad)


def alarms(count: int) -> list[Alarm]:
    """Timers that nothing is to be run for."""
    return [Alarm(int) for _ in range(count)]


def test_timer_queue_due_returns_in_order_of_deadline_then_of_setting() -> None:
    queue = TimerQueue()
    late, second, third, first = alarms(4)
    for timer, at in ((late, 3.0), (second, 1.0), (third, 1.0), (first, 0.5)):
        queue.set(timer, at)
    assert queue.next_at == 0.5
    assert queue.due(0.4) == []
    assert queue.due(1.0) == [first, second, third]
    assert queue.next_at == 3.0
    assert (len(queue), late.at, first.at) == (1, 3.0, math.inf)


@pytest.mark.parametrize(("first", "then"), [(1.0, 5.0), (9.0, 5.0)])
def test_timer_queue_replaced_deadline_is_due_once_at_the_new_time(first: float, then: float) -> None:
    queue, timer = TimerQueue(), Alarm(int)
    queue.set(timer, first)
    queue.set(timer, then)
    assert queue.due(4.9) == []
    assert queue.next_at == 5.0
    assert queue.due(5.0) == [timer]
    assert queue.due(99.0) == []
    assert queue.next_at is None


def test_timer_queue_cancelled_timer_is_let_go_at_once() -> None:
    """What a transaction or a call refers to is free with its end, not when its deadline would have been."""
    queue, timer = TimerQueue(), Alarm(int)
    queue.set(timer, 5.0)
    queue.cancel(timer)
    assert (queue._places, queue.due(99.0)) == ({}, [])


def test_timer_queue_infinite_deadline_is_never_due_and_gives_way_to_the_next_one() -> None:
    queue, timer = TimerQueue(), Alarm(int)
    queue.set(timer, 5.0)
    queue.set(timer, math.inf)
    assert (len(queue), timer.at) == (0, math.inf)
    queue.set(timer, 9.0)
    assert queue.due(8.9) == []
    assert queue.due(9.0) == [timer]
    queue.set(timer, 10.0)
    queue.set(timer, math.inf)
    assert (queue.next_at, queue.looks_at, queue.due(99.0)) == (None, math.inf, [])


def test_timer_queue_timer_without_a_deadline_is_let_go_when_it_is_cancelled() -> None:
    queue, timer = TimerQueue(), Alarm(int)
    queue.set(timer, 5.0)
    queue.set(timer, math.inf)
    queue.cancel(timer)
    assert (len(queue), queue._places, timer.at) == (0, {}, math.inf)


def test_timer_queue_looks_at_is_never_behind_the_earliest_deadline() -> None:
    queue, moved, other = TimerQueue(), *alarms(2)
    assert queue.looks_at == math.inf
    queue.set(moved, 1.0)
    queue.set(moved, 7.0)
    queue.set(other, 4.003)
    assert queue.looks_at == 1.0, "where the one that was put off was"
    assert queue.next_at == 4.003
    assert 4.003 - WIDTH_S < queue.looks_at <= 4.003


def test_timer_queue_nan_is_refused() -> None:
    queue, timer = TimerQueue(), Alarm(int)
    with pytest.raises(ValueError, match="NaN"):
        queue.set(timer, math.nan)
    assert (len(queue), queue.next_at) == (0, None)


def test_timer_queue_timers_with_equal_deadlines_are_not_compared() -> None:
    queue, timers = TimerQueue(), alarms(3)
    for timer in timers:
        queue.set(timer, 1.0)
    assert queue.due(1.0) == timers


@pytest.mark.parametrize("pattern", ["later", "earlier", "cancel"])
def test_timer_queue_garbage_stays_bounded(pattern: str) -> None:
    queue, timer = TimerQueue(), Alarm(int)
    for _ in range(10):
        queue.set(Alarm(int), 1e9)
    for n in range(10_000):
        queue.set(timer, float(n if pattern == "later" else -n))
        if pattern == "cancel":
            queue.cancel(timer)
        assert len(queue._times) <= 2 * len(queue._places) + queue.GARBAGE + 1
        assert sum(map(len, queue._places.values())) <= len(queue) + 1


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 8))
def test_timer_queue_timers_of_one_place_are_cancelled_in_any_order(moved: list[int], order: list[int], cancelled: int) -> None:
    queue, timers = TimerQueue(), alarms(8)
    for timer in timers:
        queue.set(timer, 3.0)
    for number in moved:
        queue.set(timers[number], 1 + number * WIDTH_S / 16)
    for number in order[:cancelled]:
        queue.cancel(timers[number])
        queue.cancel(timers[number])
    assert queue.due(2.0) == [timers[number] for number in sorted(order[cancelled:])]
    assert (len(queue), queue.next_at) == (0, None)


TIMES = st.integers(0, 20) | st.integers(0, 80).map(lambda n: n * WIDTH_S / 16)  # far from each other, and near
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 7), TIMES),
        st.tuples(st.sampled_from(["cancel", "none"]), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("due"), st.just(0), TIMES),
    ),
    max_size=60,
)


@given(OPERATIONS, st.integers(0, 3))
def test_timer_queue_any_operations_behave_like_a_dict(operations: list[tuple[str, int, float]], garbage: int) -> None:
    queue, model = TimerQueue(), dict[int, tuple[float, int]]()
    timers = alarms(8)
    type(queue).GARBAGE, saved = garbage, type(queue).GARBAGE  # a small allowance, so that short runs rebuild the heap
    try:
        for count, (operation, key, at) in enumerate(operations):
            if operation == "set":
                queue.set(timers[key], at)
                if key not in model or model[key][0] != at:
                    model[key] = (at, count)
            elif operation in ("cancel", "none"):
                queue.cancel(timers[key]) if operation == "cancel" else queue.set(timers[key], math.inf)
                model.pop(key, None)
            else:
                due = sorted((key for key, (when, _) in model.items() if when <= at), key=lambda key: model[key])
                assert queue.due(at) == [timers[key] for key in due]
                for key_due in due:
                    del model[key_due]
            assert queue.next_at == min((when for when, _ in model.values()), default=None)
            assert len(queue) == len(model)
            assert [timer.at for timer in timers] == [model[key][0] if key in model else math.inf for key in range(8)]
    finally:
        type(queue).GARBAGE = saved
