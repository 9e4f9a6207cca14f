"""One snapshot from its parts, read-only.

Pure. Left out: whether the parts agree with each other, which `policy.parse` and `policy.change` see to before they are kept;
here a later account wins a number, so that data from elsewhere still gives a snapshot.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from policy.model import Account, BlockRule, Line, Profile, PsapRoute, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["snapshot_of"]


def snapshot_of(  # noqa: PLR0917 - the parts of a snapshot, in its own order
    version: int,
    lines: Iterable[Line],
    accounts: Iterable[Account],
    profiles: Mapping[str, Profile],
    psap_routes: Iterable[PsapRoute],
    blocks: Iterable[BlockRule],
) -> Snapshot:
    """All policy data at `version`. PSAP routes come out by priority, then by URI."""
    by_user = {account.user: account for account in accounts}
    numbers: dict[str, str] = {}
    ranges: dict[str, str] = {}
    for account in by_user.values():
        for number in account.numbers:
            if number.endswith("*"):
                ranges[number[:-1]] = account.user
            else:
                numbers[number] = account.user
    psap: dict[tuple[str, str], list[PsapRoute]] = {}
    for route in psap_routes:
        psap.setdefault((route.location, route.service), []).append(route)
    return Snapshot(
        version=version,
        lines=MappingProxyType({line.id: line for line in lines}),
        accounts=MappingProxyType(by_user),
        profiles=MappingProxyType(dict(profiles)),
        psap=MappingProxyType(
            {key: tuple(sorted(routes, key=lambda route: (route.priority, route.uri))) for key, routes in psap.items()}
        ),
        blocks=tuple(sorted(blocks, key=lambda rule: rule.id)),
        numbers=MappingProxyType(numbers),
        ranges=MappingProxyType(ranges),
    )
