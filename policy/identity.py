"""The caller's number: which one we vouch for, which one the callee may see, and whether it is hidden (RFC 3325, RFC 3323).

Pure; never raises. § 120(1) TKG: only numbers that are assigned to the customer, and never 110, 112, 0900, 0137, 118xy or
another short code. The *network-asserted* number is one of the account; the *presented* number is what the caller put into
From or P-Preferred-Identity when that is one of the line's numbers, else the asserted one. § 15 TDDDG: hiding it for one call
(Privacy, an anonymous From, `*31#`) or always, without effect on 110, 112, 116117 and 124124.
Left out: "CLIP no screening"; the original caller of a forwarded call, § 120(2), was screened when he called.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from policy.dialled import read
from policy.emergency import service_in
from policy.model import AccountKind
from policy.model import DestinationClass as Class
from policy.numbers import classify, classify_incoming

if TYPE_CHECKING:
    from policy.model import Account, Destination, Line, Snapshot

__all__ = [
    "ALWAYS_SHOWN",
    "Screened",
    "canonical_caller",
    "forbidden_caller",
    "german_from_abroad",
    "is_anonymous",
    "main_number",
    "privacy_values",
    "reads_as_number",
    "restricts",
    "same_number",
    "screen",
]

ALWAYS_SHOWN = frozenset({"service:110", "service:112", "service:116117", "service:124124"})  # TDDDG § 13(3), § 15(1)
MAX_CALLER = 256  # characters of a caller's number or URI that are looked at
MAX_E164 = 16  # characters, with the "+" (ITU-T E.164)
KNOWN_CALLERS = 4096  # numbers whose reading is kept: From and P-Asserted-Identity mostly agree, and callers call again
MAX_VALUES = 16  # priv-values of one Privacy header that are told apart

# § 120(1) TKG: mass traffic and premium services; directory services, other short codes, 110 and 112 are told by their form.
_FORBIDDEN = frozenset({Class.PREMIUM, Class.TELEVOTING, Class.DIRECTORY, Class.CARRIER_SELECTION})
# In whatever way +49 or the 0 in front is written. No area code starts with 11, so nothing else has these forms.
_SHORT = re.compile(r"(?:\+?49|0049|0)?(110|112|116|118|(?:115|124124)\Z)[0-9]*\Z")
_DIGITS = re.compile(r"\+?[0-9*#]+\Z")
# RFC 3323 §4.2: these ask for nothing that concerns the caller's number; `id` (RFC 3325), `header`, `user` and what nobody
# knows do.
_NOT_THE_NUMBER = frozenset({"none", "session", "critical", "history"})


@dataclass(slots=True)
class Screened:
    """The outcome of screening, not to be changed. `asserted` and `presented` are +E.164 or ""; `fault` says why the given
    number may not be shown ("" when it may, or when none was given): then `presented` is the asserted one."""

    asserted: str
    presented: str
    fault: str = ""


def main_number(account: Account) -> str:
    """The account's first exact number, else extension 0 of its first range, else ""."""
    for number in account.numbers:
        if not number.endswith("*"):
            return number
    return account.numbers[0][:-1] + "0" if account.numbers else ""


def screen(snapshot: Snapshot, line: Line | None, account: Account | None, given: str, preferred: str = "") -> Screened:
    """Screen what the caller gave: `given` from From, `preferred` from P-Preferred-Identity, each a number or URI or "".

    Without an account the line's first one counts.
    """
    if account is None:
        account = snapshot.accounts.get(line.accounts[0]) if line is not None and line.accounts else None
        if account is None:
            return Screened("", "")
    main = main_number(account)
    if given == main and not preferred:
        return Screened(main, main)
    area = line.area_code if line is not None else ""
    shown, fault = _screened(snapshot, account, given, area)
    wished, other_fault = _screened(snapshot, account, preferred, area) if preferred else ("", "")
    shown = shown or wished
    asserted = main
    if shown and account.kind is AccountKind.TRUNK:  # stands for each of its numbers; a single account for its one
        owned = (n for n in (wished, shown) if n and (owner := _owner(snapshot, n)) is not None and owner.user == account.user)
        asserted = next(owned, main)
    return Screened(asserted, shown or asserted, fault or other_fault)


def _screened(snapshot: Snapshot, account: Account, given: str, area: str) -> tuple[str, str]:
    """The given number when it is one of the account's line, or "", and why it may not be shown."""
    if not given or _is_name(given):
        return "", ""
    given = given[:MAX_CALLER]
    target = given.encode("utf-8", "replace")
    spoken = read(target).spoken
    if not _DIGITS.match(spoken):
        return "", ""  # a name is no number: nothing was given
    for number in (classify(target, area).canonical, "+" + spoken):  # many routers write E.164 without its "+"
        owner = _owner(snapshot, number)
        if owner is not None and owner.line == account.line:
            return number, ""
    why = forbidden_caller(given, area)
    return "", f"{why}, which no caller may show" if why else "not a number of this line"


def _owner(snapshot: Snapshot, number: str) -> Account | None:
    """The account that a number is assigned to: exactly, or within a range, whose prefix alone is no number."""
    if number in snapshot.numbers:
        return snapshot.account_of(number)
    if number[0] != "+" or len(number) > MAX_E164 or number in snapshot.ranges:
        return None
    return snapshot.account_of(number)


def _is_name(given: str) -> bool:
    """Whether this cannot be a number because it begins like a name, an account's most often."""
    return given[0].isascii() and given[0].isalpha() and ":" not in given


def reads_as_number(given: str) -> bool:
    """Whether a user part, URI or display name is nothing but a number, in digits of any script."""
    if not given or _is_name(given):
        return False
    return _DIGITS.match(read(given[:MAX_CALLER].encode("utf-8", "replace")).spoken) is not None


def same_number(given: str, number: str, area_code: str = "") -> bool:
    """Whether `given`, a number or URI as received, is a spelling of the +E.164 `number`."""
    if given == number or not number:
        return bool(number)
    if not given or _is_name(given):
        return False
    target = given[:MAX_CALLER].encode("utf-8", "replace")
    return classify(target, area_code).canonical == number or "+" + read(target).spoken == number


def forbidden_caller(given: str, area_code: str = "") -> str:
    """What a number is that must never be shown as a caller's (§ 120(1), (3) TKG), or "" when it may be shown."""
    if not given or _is_name(given):
        return ""
    return _forbidden(given[:MAX_CALLER], area_code)


@lru_cache(maxsize=KNOWN_CALLERS)
def _forbidden(given: str, area_code: str) -> str:
    target = given.encode("utf-8", "replace")
    dialled = read(target)
    if not _DIGITS.match(dialled.spoken):
        return ""
    if service_in(dialled):
        return "an emergency number"
    short = _SHORT.match(dialled.spoken)
    if short:
        return "an emergency number" if short[1] in ("110", "112") else "a short code"
    for destination in (classify(target, area_code), classify_incoming(target)):
        if destination.kind in _FORBIDDEN:
            return f"a {destination.kind.value} number"
    return ""


def canonical_caller(given: str) -> str:
    """The +E.164 that a caller's number from a trunk means, or ""."""
    if not given or _is_name(given):
        return ""
    canonical = _incoming(given[:MAX_CALLER]).canonical
    return canonical if canonical[0] == "+" else ""


@lru_cache(maxsize=KNOWN_CALLERS)
def _incoming(given: str) -> Destination:
    return classify_incoming(given.encode("utf-8", "replace"))


def privacy_values(privacy: str) -> frozenset[str]:
    """The priv-values of a Privacy header (RFC 3323 §4.2), in lower case; of several lines joined by commas too."""
    values = (value.strip().lower() for value in privacy[:MAX_CALLER].replace(",", ";").split(";", MAX_VALUES))
    return frozenset(value for value in values if value)


def restricts(privacy: str) -> bool:
    """Whether a Privacy header asks to hide the caller's number."""
    return bool(privacy_values(privacy) - _NOT_THE_NUMBER)


def is_anonymous(user: str, host: str, display: str = "") -> bool:
    """Whether a From names nobody on purpose: RFC 3323 §4.1.1.3, or only its display name says so."""
    return (
        host.lower().rstrip(".") == "anonymous.invalid"
        or user.lower() in ("anonymous", "restricted")
        or display.strip().lower() == "anonymous"
    )


def german_from_abroad(given: str) -> bool:
    """Whether a number that came by a route from abroad must be hidden (§ 120(4) TKG): a German one, mobile ones excepted."""
    if not given or _is_name(given):
        return False
    destination = _incoming(given[:MAX_CALLER])
    national = destination.canonical.startswith(("+49", "service:")) or given.lstrip("+").startswith(("49", "0049"))
    return national and destination.kind is not Class.MOBILE
