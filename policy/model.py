"""Policy values: lines, accounts, destinations, attempts, decisions, and the snapshot that holds them all.

Pure, immutable. A snapshot is replaced, never edited; every decision names the snapshot it was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from policy.blocklist import BlockIndex, index_of
from policy.rules import BlockRule, RuleAction, RuleDirection, RuleKind, RuleLevel, Window

__all__ = [
    "WEEK_MS",
    "Account",
    "AccountKind",
    "BlockRule",
    "CallAttempt",
    "Caller",
    "Decision",
    "Destination",
    "DestinationClass",
    "Direction",
    "Line",
    "LineStatus",
    "Profile",
    "PsapRoute",
    "RuleAction",
    "RuleDirection",
    "RuleKind",
    "RuleLevel",
    "Screening",
    "Snapshot",
    "Trace",
    "Verdict",
    "Window",
]

WEEK_MS = 7 * 24 * 3600 * 1000  # TKG § 61(4): incoming calls are barred at the earliest a week after outgoing ones


class LineStatus(StrEnum):
    """State of a line (TKG § 61). In every state but `terminated` it registers and reaches 110 and 112."""

    ACTIVE = "active"
    SELECTIVE = "selective"
    BARRED_OUT = "barred_out"
    BARRED_FULL = "barred_full"
    FRAUD_HOLD = "fraud_hold"
    TERMINATED = "terminated"


class Screening(StrEnum):
    """What becomes of a call whose From shows a number that is not the line's."""

    SUBSTITUTE = "substitute"
    REFUSE = "refuse"


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


class Destination(NamedTuple):  # made for every call: a frozen dataclass takes ten times as long to make
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
    said: str = ""  # the words of a decision's first step


@dataclass(frozen=True, slots=True)
class Account:
    """A digest identity of a line. `ha1` maps the algorithm token ("MD5", "SHA-256", "SHA-512-256") to the hex HA1."""

    user: str
    line: str
    kind: AccountKind
    ha1: Mapping[str, str] = field(repr=False)
    numbers: tuple[str, ...]  # +E.164 each; a range ends in "*" (trunk accounts): "+492051988*"
    channels: int | None = None  # of the line's, how many this account may use at once; None: no limit of its own


@dataclass(frozen=True, slots=True)
class Trace:
    """An order to record malicious calls to a line (TDDDG § 14): incoming attempts from `from_ms` up to, not at, `until_ms`."""

    from_ms: int
    until_ms: int
    reference: str


@dataclass(frozen=True, slots=True)
class Line:
    """A customer's connection. `channels` None means the profile's default.

    `status_at_ms` is the day of the status, 0 when none was given; only `barred_full` looks at it: incoming calls are refused
    from then on, and not before a week after `barred_since_ms`, when outgoing ones were first refused (0: not known).
    """

    id: str
    profile: str
    status: LineStatus
    channels: int | None
    location: str
    area_code: str  # as dialled nationally, with its 0: "02051"
    accounts: tuple[str, ...]
    status_reason: str = ""
    status_at_ms: int = 0
    barred_since_ms: int = 0
    clir: bool = False  # the caller's number is hidden in every call but those that the law excepts
    reject_anonymous: bool = False  # calls with a hidden number are refused (433)
    traces: tuple[Trace, ...] = ()
    soft_channels: int | None = None  # calls at once beyond which it is only reported; None: the profile's, 0: never

    @property
    def incoming_until_ms(self) -> int:
        """UTC ms from which a `barred_full` line refuses incoming calls."""
        return max(self.status_at_ms, self.barred_since_ms + WEEK_MS if self.barred_since_ms else 0)


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
    screening: Screening = Screening.SUBSTITUTE
    hotlines: tuple[str, ...] = ()  # the carrier's own, as canonical forms: reachable from barred lines
    setup_calls: int = 0  # calls that a line with `channels` channels may start within the window; 0: no limit
    setup_window_s: int = 60
    setup_out: tuple[int, int] = (403, 42)
    forwarding_slots: int = 1  # channels that the outgoing half of a forwarded call takes, beside the incoming one's: 0 or 1
    soft_channels: int = 0  # calls at once of a line beyond which it is only reported; 0: never
    pass_percent: int = 0  # of calls that the network lets pass, as promised to customers; 0: nothing was promised


@dataclass(frozen=True, slots=True)
class PsapRoute:
    """One route to an emergency centre: a SIP URI such as `sip:112@psap.example:5060`, in order of `priority`."""

    location: str
    service: str  # "110" or "112"
    priority: int
    uri: str
    name: str = ""
    valid_from_ms: int | None = None  # the entries of the latest day that has come count; None: before any day


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All policy data at one version. The mappings are read-only; build one with `policy.build.snapshot_of`.

    `block_index` is made from `blocks`.
    """

    version: int
    lines: Mapping[str, Line]
    accounts: Mapping[str, Account]
    profiles: Mapping[str, Profile]
    psap: Mapping[tuple[str, str], tuple[PsapRoute, ...]]  # (location, service) -> routes in order
    blocks: tuple[BlockRule, ...]
    numbers: Mapping[str, str]  # exact +E.164 -> account user
    ranges: Mapping[str, str]  # range prefix without "*" -> account user
    block_index: BlockIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_index", index_of(self.blocks))  # frozen: the only way to derive a field

    @property
    def has_incoming_rules(self) -> bool:
        """Whether any rule looks at callers' numbers, so that reading them is worth the time."""
        return bool(self.block_index.admin_incoming or self.block_index.customer_incoming)

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

    def soft_channels_of(self, line: Line) -> int:
        """How many of its channels the line may use before that is reported; 0: it is not."""
        if line.soft_channels is not None:
            return line.soft_channels
        profile = self.profiles.get(line.profile)
        return profile.soft_channels if profile is not None else 0

    def setup_limit(self, line: Line) -> tuple[int, int]:
        """How many calls the line may start within how many seconds, in proportion to its channels; (0, 0): no limit."""
        profile = self.profiles.get(line.profile)
        if profile is None or not profile.setup_calls:
            return (0, 0)
        if line.channels is None:
            return profile.setup_calls, profile.setup_window_s
        share = line.channels / max(1, profile.channels)
        return max(1, round(profile.setup_calls * share)), profile.setup_window_s


@dataclass(slots=True)
class CallAttempt:
    """The question put to `policy.evaluate`. Not to be changed: a frozen one takes five times as long to make.

    `target` is the Request-URI (or a bare dialled string) in bytes as received. For an outgoing attempt `line` is the
    caller's; for an incoming one it is None and found from the target. `slots_used` is what the line holds before this
    call; None leaves the channel rule to the atomic take that follows, whose refusal is evaluated again with the count.
    `account_used` is the same of the line's slots that the account holds, for an account with a limit of its own.
    `setups` is how many calls the line started within its profile's window before this one; None leaves that rule out.
    """

    direction: Direction
    target: bytes
    line: Line | None = None
    account: Account | None = None
    caller: str = ""  # user-provided number (From), as received
    slots_used: int | None = None
    setups: int | None = None
    privacy: bool = False  # a Privacy header asks to hide the caller (RFC 3323, RFC 3325)
    anonymous: bool = False  # From names nobody
    network: str = ""  # number that the trunk asserts (P-Asserted-Identity), as received; "" from a customer
    abroad: bool = False  # came in over a route from abroad
    preferred: str = ""  # the one of several that the caller wants vouched for (P-Preferred-Identity), as received
    account_used: int | None = None


class Caller(NamedTuple):
    """What becomes of the caller's number (`policy.identity`).

    `asserted` is the one that the network vouches for, `presented` the one that the called party may see, "" for none;
    `restricted` says that it is to be hidden; `trace` is the reference of an order to record malicious calls; `refusal` is
    (rule, reason, status, cause) when the number alone refuses the call; `said` is the step's words.
    """

    asserted: str = ""
    presented: str = ""
    restricted: bool = False
    trace: str = ""
    refusal: tuple[str, str, int, int] | None = None
    said: str = ""


class Decision(NamedTuple):
    """What policy says about one attempt. A denial is a value, not an exception.

    `status` and `cause` are set for a denial. `line` and `account` are the ones whose channels the call would use (the
    callee's for an incoming attempt); `channels` is that line's limit, None for an emergency. `asserted` is the number of
    the caller that we vouch for (outgoing) or "". `callee` is the account that the destination is assigned to: an
    outgoing call to it stays on-net. `psap` are the routes of an emergency call in order. `steps` names each rule that
    was looked at, in order, with what it said. `presented`, `restricted` and `trace` are those of `Caller`.
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
    presented: str = ""
    restricted: bool = False
    trace: str = ""
