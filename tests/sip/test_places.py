"""In which order the places of a next hop are tried (RFC 2782)."""

from __future__ import annotations

import random

from sipproxy.sip.places import Place, in_order


def test_order_keeps_the_ranks_and_the_addresses_of_one_entry_together() -> None:
    drawn = random.Random(7)
    places = [
        Place("UDP", f"h{rank}{entry}{address}", 5060, rank=rank, weight=10 * entry, entry=entry)
        for rank in (5, 1)
        for entry in range(3)
        for address in range(2)
    ]
    firsts = set()
    for _ in range(200):
        order = in_order(places, lambda most: drawn.randint(0, most))
        assert sorted(order) == sorted(places)
        assert [place.rank for place in order] == [1] * 6 + [5] * 6
        pairs = [(order[n].entry, order[n + 1].entry) for n in range(0, 12, 2)]
        assert all(one == other for one, other in pairs)
        firsts.add(order[0].entry)
    assert firsts == {0, 1, 2}
