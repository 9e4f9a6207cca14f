"""Budgets of sources, lines and strangers are the node's, however its messages are spread over its workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.engine import spending
from sipproxy.engine.crew import Gone, Took, Word
from sipproxy.engine.settings import Rates
from sipproxy.engine.spending import STEPS, Spending
from sipproxy.sip.flow import Flow
from tests.engine.desk import ROUTER, STRANGER, Desk
from tests.sim.conftest import make_town

WORKERS = 3
BURST, RATE = 40, 2
RATES = Rates(
    source_per_s=RATE, source_burst=BURST, line_per_s=RATE, line_burst=BURST, strangers_per_s=10_000, strangers_burst=10_000,
    registers_per_s=10_000, registers_burst=10_000,
)  # fmt: skip
MORE_AT_ONCE = (WORKERS - 1) * BURST // STEPS
CALL = b"sip:03023125001@sip.example"
HELP = b"sip:112@sip.example"


def crew(rates: Rates = RATES) -> list[Desk]:
    """The workers of a node, who hear each other at once."""
    desks = [Desk(make_town(rates=rates, worker=number).world.engine) for number in range(1, WORKERS + 1)]
    for desk in desks:
        others = [other for other in desks if other is not desk]

        def tell(word: Word, others: Sequence[Desk] = others) -> None:
            for other in others:
                other.engine.crew.hear(word, other.now)

        desk.engine.crew.tell = tell
    return desks


def taken(desk: Desk, flow: Flow, uri: bytes = CALL, method: bytes = b"INVITE") -> bool:
    """Whether the message is looked at."""
    return desk.engine.shedder.check(desk.request(method, uri), flow) is None


def tick(desks: Sequence[Desk], seconds: float) -> None:
    for desk in desks:
        desk.tick(seconds)
        desk.engine.desk.now = desk.now


@given(st.lists(st.integers(0, WORKERS - 1), min_size=3 * BURST, max_size=3 * BURST))
def test_source_has_one_budget_wherever_its_messages_come_to(reads: list[int]) -> None:
    desks = crew()
    tick(desks, 0)
    assert BURST <= sum(taken(desks[reader], STRANGER) for reader in reads) <= BURST + MORE_AT_ONCE


@pytest.mark.parametrize("spread", [lambda number: 0, lambda number: number % WORKERS], ids=["to one worker", "to all"])
def test_source_is_heard_at_the_rate_of_the_node_over_time(spread: Callable[[int], int]) -> None:
    desks, seconds, count = crew(), 60, 0
    for number in range(seconds * 20):
        tick(desks, 1 / 20)
        count += taken(desks[spread(number)], STRANGER)
    assert BURST + RATE * seconds * 0.95 <= count <= BURST + RATE * seconds + MORE_AT_ONCE


def test_what_was_taken_at_once_beyond_the_budget_is_paid_back() -> None:
    """Nobody heard of the others meanwhile: each of the three gave the whole budget."""
    desks = crew()
    tick(desks, 0)
    for desk in desks:
        desk.engine.shedder.spending.tell = None
        assert sum(taken(desk, STRANGER) for _ in range(BURST)) == BURST
    for desk in desks:
        for _ in desks[1:]:
            desk.engine.crew.hear(Took("source", STRANGER.host, BURST), desk.now)
    tick(desks, BURST / RATE - 1)
    assert not any(taken(desk, STRANGER) for desk in desks)
    tick(desks, 2)
    assert all(taken(desk, STRANGER) for desk in desks)


def test_line_has_one_budget_and_help_none() -> None:
    desks = crew()
    for desk in desks:
        tick(desks, 1)  # their random numbers are the same here, and so would be their nonces
        assert desk.register(b"<sip:alice@203.0.113.1:5060>").status == 200
    count = sum(taken(desks[number % WORKERS], ROUTER) for number in range(4 * BURST))
    assert BURST - WORKERS <= count <= BURST + MORE_AT_ONCE
    assert all(taken(desk, ROUTER, HELP) and taken(desk, STRANGER, HELP) for desk in desks for _ in range(2 * BURST))


def test_strangers_together_have_one_budget() -> None:
    desks = crew(Rates(source_per_s=10_000, source_burst=10_000, strangers_per_s=RATE, strangers_burst=BURST))
    tick(desks, 0)
    sources = (Flow("UDP", 0, f"192.0.2.{number}", 5060) for number in range(200))
    count = sum(taken(desks[number % WORKERS], source) for number, source in enumerate(sources))
    assert BURST * 0.6 <= count <= BURST + MORE_AT_ONCE


def test_node_of_one_process_keeps_nothing_to_tell() -> None:
    desk = Desk(make_town(rates=RATES).world.engine)
    desk.engine.desk.now = desk.now
    assert taken(desk, STRANGER)
    assert len(desk.engine.shedder.spending) == 0
    desk.engine.crew.hear(Gone(2), desk.now)


@pytest.mark.plain_alone
def test_untold_messages_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "MAX_UNTOLD", 10)
    told = []
    found = Spending()
    found.tell = lambda kind, whose, count: told.append((kind, whose, count))
    for number in range(11):
        found.took("source", f"192.0.2.{number}", 100)
    assert (len(found), found.forgotten, told) == (1, 10, [])
    for _ in range(9):
        found.took("source", "192.0.2.10", 100)
    assert (len(found), told) == (0, [("source", "192.0.2.10", 10)])
