"""Operators' block rules: the longest canonical prefix that applies to a line.

Pure. Of prefixes of the same length the rule for the line is named before the profile's, and that before one for all.
Left out: checking rules when they are entered (`policy.parse`); a rule never reaches an emergency call (`policy.evaluate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policy.model import BlockRule, Line, Snapshot

__all__ = ["block_of"]


def block_of(snapshot: Snapshot, line: Line, canonical: str) -> BlockRule | None:
    """The rule that refuses `canonical` to `line`, or None."""
    tables = snapshot.block_tables
    if not tables:
        return None
    found: BlockRule | None = None
    longest = 0
    for scope in ((line.id, line.profile), (line.id, ""), ("", line.profile), ("", "")):
        table = tables.get(scope)
        if table is None:
            continue
        for length in table.lengths:
            if length <= longest:
                break
            rule = table.rules.get(canonical[:length])
            if rule is not None and length <= len(canonical):
                found, longest = rule, length
                break
    return found
