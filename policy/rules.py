"""Block rules as values: what an operator or a customer wants refused, or excepted from that.

Pure, immutable. Left out: which of several rules counts (`policy.blocklist`), weekly windows as text (`policy.windows`), what
a rule may say (`policy.parse`, `policy.lint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BlockRule", "RuleAction", "RuleDirection", "RuleKind", "RuleLevel", "Window"]


class RuleKind(StrEnum):
    """What `BlockRule.value` is."""

    PREFIX = "prefix"  # beginning of a canonical form: "+49900", "service:118", "carrier:010"
    NUMBER = "number"  # a whole canonical form
    CLASS = "class"  # a `DestinationClass`, such as "premium"
    COUNTRY = "country"  # "+" and a country code, as it stands in front of every canonical form: "+43"


class RuleAction(StrEnum):
    BLOCK = "block"
    ALLOW = "allow"  # an exception from shorter rules of the same level


class RuleDirection(StrEnum):
    """Which calls a rule looks at, and which number of them."""

    OUTGOING = "outgoing"  # the destination
    INCOMING = "incoming"  # the caller's number
    BOTH = "both"


class RuleLevel(StrEnum):
    """Whose rule it is. A customer's exception lifts nothing that the operator blocks, nor the other way round."""

    ADMIN = "admin"
    CUSTOMER = "customer"  # TKG § 61(1): the customer's own barring; `line` is set


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly window on the clock of Europe/Berlin.

    `days` are the days it begins on, Monday 0; minutes count from midnight, `end_min` is the first one outside. An end that
    is not after the start lies on the next day.
    """

    days: tuple[int, ...]
    start_min: int
    end_min: int


@dataclass(frozen=True, slots=True)
class BlockRule:
    """One rule. It counts from `valid_from_ms` up to, not at, `valid_until_ms` (UTC; None: no bound) and, where it has
    windows, inside one of them. `public` rules stand in the list that a customer may ask for."""

    id: str
    value: str
    reason: str
    profile: str = ""  # "" for all
    line: str = ""  # "" for all
    owner: str = ""
    kind: RuleKind = RuleKind.PREFIX
    action: RuleAction = RuleAction.BLOCK
    direction: RuleDirection = RuleDirection.OUTGOING
    level: RuleLevel = RuleLevel.ADMIN
    ticket: str = ""
    valid_from_ms: int | None = None
    valid_until_ms: int | None = None
    windows: tuple[Window, ...] = ()
    public: bool = False
