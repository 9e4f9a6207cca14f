"""Where a next hop is, as DNS says (RFC 3263 §4), and in which order its addresses are tried (RFC 2782).

Pure. Finding the records is the resolver's work (net/resolver.py), choosing among living and dead ones the engine's
(engine/addresses.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Place", "in_order"]


class Place(NamedTuple):
    """One address of a next hop, and the records that led there.

    `rank` is the preference, lower first; among equals `weight` is the share of the entry that the address belongs to, and
    `entry` which one that is (RFC 2782: an SRV record, whose target may have several addresses).
    """

    transport: str
    host: str
    port: int
    record: str = ""
    rank: int = 0
    weight: int = 0
    entry: int = 0


def in_order(places: Iterable[Place], draw: Callable[[int], int]) -> list[Place]:
    """The places by rank, and within one rank at random in proportion to the weights of their entries.

    `draw(n)` returns a random number from 0 to n, both included.
    """
    ranks: dict[int, dict[int, list[Place]]] = {}
    for place in places:
        ranks.setdefault(place.rank, {}).setdefault(place.entry, []).append(place)
    order: list[Place] = []
    for rank in sorted(ranks):
        left = sorted(ranks[rank].values(), key=lambda entry: entry[0].weight)  # those of weight 0 first, as RFC 2782 has it
        while left:
            chosen = 0
            if len(left) > 1:
                mark, passed = draw(sum(entry[0].weight for entry in left)), 0
                while (passed := passed + left[chosen][0].weight) < mark:
                    chosen += 1
            order += left.pop(chosen)
    return order
