"""Every call counted and recorded once, whatever happens to it: the short form of `make mix` (design, invariants 2 to 4)."""

from __future__ import annotations

import pytest

from tests.sim.mix.run import run_world

CALLS = 150


@pytest.mark.parametrize(
    ("seed", "calls"),
    [
        *((seed, CALLS) for seed in range(9001, 9009)),
        (87, 250),  # a call is cancelled while it waits for its slot, and its node dies before the slot is granted
        (224, 250),  # two kills in a row, and a call for help had a place on a route
    ],
)
def test_random_calls_with_losses_and_kills_agree_with_the_truth_of_their_parties(seed: int, calls: int) -> None:
    result = run_world(seed, calls)
    assert not result.differences, "\n".join(f"{d.what}\n{d.ladder}" for d in result.differences)
    assert result.totals["quiet"] > 50
    assert result.totals["records"] > calls * 0.8  # a node that is away takes no calls
    assert result.errors_ms
