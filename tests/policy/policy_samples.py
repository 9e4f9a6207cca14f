"""Lines, accounts and snapshots for the tests of `policy`, and every spelling of a number."""

from __future__ import annotations

from policy import profiles
from policy.build import snapshot_of
from policy.model import Account, AccountKind, BlockRule, CallAttempt, Direction, Line, LineStatus, PsapRoute, Snapshot

PROFILES = profiles.load()
AREA = {"velbert": "02051", "badnauheim": "06032"}
OWN = {"velbert": "+492051988111", "badnauheim": "+4960329998"}


def line_of(profile: str = "velbert", status: LineStatus = LineStatus.ACTIVE, channels: int | None = None) -> Line:
    return Line("L1", profile, status, channels, "town", AREA[profile], ("a1",))


def account_of(profile: str = "velbert") -> Account:
    return Account("a1", "L1", AccountKind.SINGLE, {}, (OWN[profile],))


ROUTES = (
    PsapRoute("town", "112", 20, "sip:112@second.example"),
    PsapRoute("town", "112", 10, "sip:112@first.example"),
    PsapRoute("town", "110", 10, "sip:110@police.example"),
)


def snapshot_with(
    *blocks: BlockRule, line: Line | None = None, account: Account | None = None, psap: tuple[PsapRoute, ...] = ROUTES
) -> Snapshot:
    found = line or line_of()
    return snapshot_of(7, [found], [account or account_of(found.profile)], PROFILES, psap, blocks)


def outgoing(target: bytes | str, line: Line | None = None, *, slots_used: int | None = 0, caller: str = "") -> CallAttempt:
    found = line or line_of()
    raw = target.encode() if isinstance(target, str) else target
    return CallAttempt(Direction.OUTGOING, raw, found, account_of(found.profile), caller, slots_used)


def incoming(target: str, *, slots_used: int | None = 0) -> CallAttempt:
    return CallAttempt(Direction.INCOMING, target.encode(), slots_used=slots_used)


def spellings(national: str) -> list[str]:
    """Every form in which the national number `0<national>` may be dialled or put into a Request-URI."""
    escaped = "".join(f"%3{digit}" for digit in "0" + national)
    spaced = f"0{national[:2]}-{national[2:4]}.({national[4:]})"
    half = f"0{national[:2]}%3{national[2]}{national[3:]}"
    numbers = [
        f"0{national}",
        f"+49{national}",
        f"0049{national}",
        f"%2B49{national}",
        f"%2b49{national}",
        f"+490{national}",
        f"00490{national}",
        f"+49(0){national}",
        f"+49%20{national[:2]}%20{national[2:]}",
        escaped,
        half,
        spaced,
        f"*31#0{national}",
        f"*31%230{national}",
        f"#31#0{national}",
        f"0{national}%23",
        f"0{national};ext=12",
        f"0{national};isub=99;postd=pp22",
        f"+49{national};npdi;rn=+49900123456;cic=+4910",
        f"0{national};phone-context=+49",
        f"0{national};phone-context=%2B49",
        f"0{national};Phone-Context=+4-9",
        f"0{national};phone-context=sip.example",
        f"{national};phone-context=+49",
        f"{national[3:]};phone-context=+49{national[:3]}",
    ]
    if national[3] in "01":
        numbers.pop()  # a subscriber number that looks like a prefix is read as dialled
    found = list(numbers)
    found += [f"sip:{number}@sip.example" for number in numbers]
    found += [f"SIPS:{number}@[2001:db8::1]:5061;user=phone?Subject=x" for number in numbers]
    found += [f"tel:{number}" for number in numbers]
    return found
