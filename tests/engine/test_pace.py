"""A town after a power cut, on a virtual clock: how fast it is registered, and how long messages wait meanwhile.

The node is a queue with one server: a REGISTER that is taken costs the time that its capacity says, one that is refused a
twentieth of that. Routers repeat nothing but what Retry-After says.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.pace import EACH, LEAST, MAX_RETRY_S, MIN_RETRY_S, START, Calendar, Pace
from sipproxy.engine.settings import Rates

REFUSING = 0.05  # of the cost of a REGISTER that is taken
SAMPLE_S = 0.1


@dataclass
class Drained:
    """What became of a storm; seconds."""

    drained_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)  # of each message, before the node looked at it
    refused: int = 0


def storm(routers: int, over_s: float, capacity: float, seed: int = 1) -> Drained:
    """Each router needs two REGISTERs, one after the other; the node can take `capacity` of them a second."""
    pace, chance, found = Pace(Rates()), random.Random(seed), Drained()
    events = [(over_s * number / routers, number) for number in range(routers)]
    challenged, left, free_at, sampled_at = set[int](), routers, 0.0, 0.0
    while left:
        at, router = heapq.heappop(events)
        start = max(at, free_at)
        while sampled_at + SAMPLE_S <= start:
            sampled_at += SAMPLE_S
            pace.observe(max(0.0, sampled_at - at), sampled_at)  # the oldest message is still waiting, if it has come
        found.waits_s.append(start - at)
        taken = pace.take(start) or (router in challenged and pace.take(start, answers=True))
        free_at = start + (1 if taken else REFUSING) / capacity
        if not taken:
            found.refused += 1
            heapq.heappush(events, (free_at + pace.again_after(start, chance.random()), router))
        elif router in challenged:
            left -= 1
        else:
            challenged.add(router)
            heapq.heappush(events, (free_at + 0.005, router))
    found.drained_s = free_at
    return found


@pytest.mark.parametrize(
    ("routers", "over_s", "capacity"),
    [(20_000, 10, 1200), (4000, 3, 300), (3000, 0.1, 2000), (300, 1, 1000)],
)
def test_town_is_registered_in_at_most_twice_the_time_that_the_node_needs(routers: int, over_s: float, capacity: float) -> None:
    """Neither by half of what the node can do, nor by waiting lines in which calls wait, too."""
    found = storm(routers, over_s, capacity)
    assert found.drained_s < 2 * EACH * routers / capacity + 4 * MIN_RETRY_S
    assert sorted(found.waits_s)[len(found.waits_s) // 2] < 0.4, "less than it takes a caller to repeat what he said"
    assert found.refused < 4 * routers


@settings(max_examples=15)
@given(st.integers(10, 800), st.floats(0.1, 10), st.floats(200, 3000), st.integers(0, 99))
def test_every_storm_drains(routers: int, over_s: float, capacity: float, seed: int) -> None:
    found = storm(routers, over_s, capacity, seed)
    assert found.drained_s < over_s + 2.5 * EACH * routers / capacity + 6 * MIN_RETRY_S


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 1, exclude_max=True)), max_size=800), st.floats(0.5, 50))
def test_no_second_has_more_places_than_routers_can_be_registered_in(asked: list[tuple[float, float]], per_s: float) -> None:
    """And none is left out that has one, by more than a tenth of the wait."""
    calendar, now, due = Calendar(), 100.0, dict[int, int]()
    for later, jitter in asked:
        now += later
        calendar.look_again()
        wait = calendar.place(now, per_s, jitter)
        assert MIN_RETRY_S <= wait <= MAX_RETRY_S
        second = int(now) + wait
        due[second] = due.get(second, 0) + 1
        room = max(1, int(per_s))
        assert due[second] <= room
        free = next(s for s in range(int(now) + MIN_RETRY_S, second + 1) if due.get(s, 0) < room or s == second)
        assert wait - (free - int(now)) <= 1 + (free - int(now)) // 10
        assert calendar.waiting == sum(count for at, count in due.items() if at >= int(now))


def test_calendar_that_is_full_spreads_the_others_over_its_later_half() -> None:
    calendar = Calendar()
    for _ in range(MAX_RETRY_S - MIN_RETRY_S + 1):
        calendar.place(0.0, 1, 0.0)
    waits = [calendar.place(0.0, 1, number / 100) for number in range(100)]
    assert (min(waits), max(waits)) == (MAX_RETRY_S - 297, MAX_RETRY_S)
    calendar.turn(10_000.0)
    assert (calendar.waiting, calendar.place(10_000.0, 1, 0.0)) == (0, MIN_RETRY_S)


def test_rate_shrinks_while_messages_wait_and_grows_while_some_are_refused() -> None:
    pace, now = Pace(Rates()), 0.0

    def sample(late_s: float, refused: int = 0) -> float:
        nonlocal now
        now += SAMPLE_S
        for _ in range(refused):
            pace.again_after(now, 0.5)
        pace.observe(late_s, now)
        return pace.share

    assert sample(0.0) == START, "nobody asks for more"
    assert sample(0.0, refused=1) > START
    assert sample(0.07, refused=1) == pytest.approx(START * 1.1), "near the mark it stays"
    for _ in range(60):
        sample(0.2, refused=1)
    assert (pace.share, pace.per_s) == (LEAST, LEAST * Rates().registers_per_s)
    assert pace.ease == LEAST / START
    for _ in range(30):
        sample(0.0)
    assert START <= pace.share < 1.2 * START
    assert pace.ease == 1.0, "what was lost comes back unasked"
    for _ in range(60):
        sample(0.0, refused=1)
    assert pace.share == 1.0


def test_who_was_challenged_is_taken_when_first_tries_are_not() -> None:
    pace = Pace(Rates(registers_per_s=40, registers_burst=20))
    assert [pace.take(0.0) for _ in range(11)] == [True] * 10 + [False]
    assert [pace.take(0.0, answers=True) for _ in range(11)] == [True] * 10 + [False], "and they have a bound too"
    assert not pace.take(0.9)
    assert pace.take(1.3), "what was taken ahead is missing later"
