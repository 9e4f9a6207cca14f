"""Policy values: lines, accounts, destinations, attempts, decisions, and the snapshot that holds them all.

Pure, immutable. A snapshot is replaced, never edited; every decision names the snapshot it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

__all__ = [
    "Account",
    "AccountKind",
    "BlockRule",
    "BlockTable",
    "CallAttempt",
    "Decision",
    "Destination",
    "DestinationClass",
    "Direction",
    "Line",
    "LineStatus",
    "Profile",
    "PsapRoute",
    "Snapshot",
    "Verdict",
]

EMPTY: Mapping[str, str] = MappingProxyType({})


class LineStatus(StrEnum):
    """State of a line (TKG § 61). In every state but `terminated` it registers and reaches 110 and 112."""

    ACTIVE = "active"
    SELECTIVE = "selective"
    BARRED_OUT = "barred_out"
    BARRED_FULL = "barred_full"
    FRAUD_HOLD = "fraud_hold"
    TERMINATED = "terminated"


class AccountKind(StrEnum):
    """`single`: one number each; `trunk`: one account for all numbers and ranges of the line."""

    SINGLE = "single"
    TRUNK = "trunk"


class Direction(StrEnum):
    OUTGOING = "outgoing"  # a line's account is the caller
    INCOMING = "incoming"  # from a trunk, or the callee's half of an internal call


class Verdict(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    EMERGENCY = "emergency"


class DestinationClass(StrEnum):
    """What a destination is, by the German numbering plan."""

    EMERGENCY = "emergency"
    GEOGRAPHIC = "geographic"
    MOBILE = "mobile"
    PAGING = "paging"
    PERSONAL = "personal"  # 0700
    FREEPHONE = "freephone"  # 0800, +800
    SHARED_COST = "shared_cost"  # 0180
    TELEVOTING = "televoting"  # 0137, 0138
    PREMIUM = "premium"  # 0900
    NATIONAL = "national"  # 032
    DIRECTORY = "directory"  # 118xy
    SOCIAL = "social"  # 116xyz
    AUTHORITY = "authority"  # 115
    CARRIER_SELECTION = "carrier_selection"  # 010xy, 0100yy
    INNOVATIVE = "innovative"  # 012
    USER_GROUP = "user_group"  # 0181-0189
    ROUTING = "routing"  # 0198, 0199, porting prefixes
    INTERNATIONAL = "international"
    INTERNATIONAL_SPECIAL = "international_special"  # +808, +979, +87x, +88x
    RESERVED = "reserved"  # unassigned or unknown: refused
    INVALID = "invalid"  # no number at all


@dataclass(frozen=True, slots=True)
class Destination:
    """What a dialled string means.

    `canonical` is `+E.164`, `service:NNN`, `carrier:010xy` or `-`; `prefix` the longest tariff prefix of the canonical
    form; `service` is "110" or "112" for an emergency call and "" otherwise; `status` and `cause` are the refusal that
    the numbering plan itself asks for (404/1, 484/28, 400) or 0; `how` says in a few words how the string was read.
    """

    dialled: str
    canonical: str
    kind: DestinationClass
    prefix: str = ""
    service: str = ""
    status: int = 0
    cause: int = 0
    how: str = ""
    clir: bool = False  # `*31#` in front asked to hide the caller's number


@dataclass(frozen=True, slots=True)
class Account:
    """A digest identity of a line. `ha1` maps the algorithm token ("MD5", "SHA-256", "SHA-512-256") to the hex HA1."""

    user: str
    line: str
    kind: AccountKind
    ha1: Mapping[str, str] = field(repr=False)
    numbers: tuple[str, ...]  # +E.164 each; a range ends in "*" (trunk accounts): "+492051988*"


@dataclass(frozen=True, slots=True)
class Line:
    """A customer's connection. `channels` None means the profile's default."""

    id: str
    profile: str
    status: LineStatus
    channels: int | None
    location: str
    area_code: str  # as dialled nationally, with its 0: "02051"
    accounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A carrier product's rules."""

    name: str
    title: str
    area_codes: tuple[str, ...]
    channels: int
    blocked: tuple[DestinationClass, ...]  # classes refused with `refusal`
    allowed_numbers: tuple[str, ...]  # canonical forms excepted from `blocked`; "+808*" is a prefix
    refusal: tuple[int, int] = (403, 21)  # SIP status, Q.850 cause of a blocked destination
    channels_out: tuple[int, int] = (403, 34)
    channels_in: tuple[int, int] = (486, 17)


@dataclass(frozen=True, slots=True)
class PsapRoute:
    """One route to an emergency centre: a SIP URI such as `sip:112@psap.example:5060`, in order of `priority`."""

    location: str
    service: str  # "110" or "112"
    priority: int
    uri: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class BlockRule:
    """An operator's rule: a canonical prefix that is refused."""

    id: str
    prefix: str
    reason: str
    profile: str = ""  # "" for all
    line: str = ""  # "" for all
    owner: str = ""


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The rules of one scope by prefix, and the lengths that their prefixes have, longest first."""

    rules: Mapping[str, BlockRule]
    lengths: tuple[int, ...]


def _block_tables(blocks: tuple[BlockRule, ...]) -> dict[tuple[str, str], BlockTable]:
    """Rules by (line, profile); "" stands for all. Of two rules for one prefix the one with the lower id counts."""
    scopes: dict[tuple[str, str], dict[str, BlockRule]] = {}
    for rule in sorted(blocks, key=lambda rule: rule.id):
        if rule.prefix:  # an empty prefix would be everything: never what a slip of the hand may cause
            scopes.setdefault((rule.line, rule.profile), {}).setdefault(rule.prefix, rule)
    return {
        scope: BlockTable(rules, tuple(sorted({len(prefix) for prefix in rules}, reverse=True)))
        for scope, rules in scopes.items()
    }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All policy data at one version. The mappings are read-only; build one with `policy.build.snapshot_of`.

    `block_tables` is made from `blocks`: (line, profile) -> table, "" for all.
    """

    version: int
    lines: Mapping[str, Line]
    accounts: Mapping[str, Account]
    profiles: Mapping[str, Profile]
    psap: Mapping[tuple[str, str], tuple[PsapRoute, ...]]  # (location, service) -> routes in order
    blocks: tuple[BlockRule, ...]
    numbers: Mapping[str, str]  # exact +E.164 -> account user
    ranges: Mapping[str, str]  # range prefix without "*" -> account user
    block_tables: Mapping[tuple[str, str], BlockTable] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_tables", _block_tables(self.blocks))  # frozen: the only way to derive a field

    def account_of(self, number: str) -> Account | None:
        """The account that a `+E.164` number is assigned to: exact, else the longest range; None when there is none."""
        user = self.numbers.get(number)
        if user is None and self.ranges:
            for end in range(len(number), 1, -1):
                user = self.ranges.get(number[:end])
                if user is not None:
                    break
        return self.accounts.get(user) if user is not None else None

    def channels_of(self, line: Line) -> int:
        """How many simultaneous non-emergency calls the line may have."""
        return line.channels if line.channels is not None else self.profiles[line.profile].channels


@dataclass(frozen=True, slots=True)
class CallAttempt:
    """The question put to `policy.evaluate`.

    `target` is the Request-URI (or a bare dialled string) in bytes as received. For an outgoing attempt `line` is the
    caller's; for an incoming one it is None and found from the target. `slots_used` is what the line holds before this
    call; None leaves the channel rule to the atomic take that follows, whose refusal is evaluated again with the count.
    """

    direction: Direction
    target: bytes
    line: Line | None = None
    account: Account | None = None
    caller: str = ""  # user-provided number, as received
    slots_used: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy says about one attempt. A denial is a value, not an exception.

    `status` and `cause` are set for a denial. `line` and `account` are the ones whose channels the call would use (the
    callee's for an incoming attempt); `channels` is that line's limit, None for an emergency. `asserted` is the number of
    the caller that we vouch for (outgoing) or "". `callee` is the account that the destination is assigned to: an
    outgoing call to it stays on-net. `psap` are the routes of an emergency call in order. `steps` names each rule that
    was looked at, in order, with what it said.
    """

    verdict: Verdict
    rule: str
    reason: str
    snapshot: int
    destination: Destination
    status: int = 0
    cause: int = 0
    line: Line | None = None
    account: Account | None = None
    callee: Account | None = None
    channels: int | None = None
    asserted: str = ""
    psap: tuple[PsapRoute, ...] = ()
    steps: tuple[tuple[str, str], ...] = ()
