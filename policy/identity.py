"""The caller's number: which one we vouch for, which one the callee may see, and whether it is hidden (RFC 3325, RFC 3323).

Pure; never raises. § 120(1) TKG: only numbers that are assigned to the customer, and never 110, 112, 0900, 0137, 118xy or
another short code. The *network-asserted* number is one of the account; the *presented* number is what the caller put into
From or P-Preferred-Identity when that is one of the line's numbers, else the asserted one. § 15 TDDDG: hiding it for one call
(Privacy, an anonymous From, `*31#`) or always, without effect on 110, 112, 116117 and 124124.
Left out: "CLIP no screening" and the original caller of a forwarded call, § 120(2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.dialled import read
from policy.emergency import service_in
from policy.model import AccountKind
from policy.model import DestinationClass as Class
from policy.numbers import classify, classify_incoming

if TYPE_CHECKING:
    from policy.model import Account, Line, Snapshot

__all__ = [
    "ALWAYS_SHOWN",
    "Screened",
    "asserted_number",
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
MAX_VALUES = 16  # priv-values of one Privacy header that are told apart

# § 120(1) TKG: mass traffic and premium services; directory services, other short codes, 110 and 112 are told by their form.
_FORBIDDEN = frozenset({Class.PREMIUM, Class.TELEVOTING, Class.DIRECTORY, Class.CARRIER_SELECTION})
# In whatever way +49 or the 0 in front is written. No area code starts with 11, so nothing else has these forms.
_SHORT = re.compile(r"(?:\+?49|0049|0)?(110|112|116|118|(?:115|124124)\Z)[0-9]*\Z")
_DIGITS = re.compile(r"\+?[0-9*#]+\Z")
# RFC 3323 §4.2: these ask for nothing that concerns the caller's number; `id` (RFC 3325), `header`, `user` and what nobody
# knows do.
_NOT_THE_NUMBER = frozenset({"none", "session", "critical", "history"})


@dataclass(frozen=True, slots=True)
class Screened:
    """The outcome of screening. `asserted` and `presented` are +E.164 or ""; `fault` says why the given number may not be
    shown ("" when it may, or when none was given): then `presented` is the asserted one."""

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
    if account is not None and given in account.numbers and not preferred and given[-1:] != "*":
        return Screened(given if _may_assert(given, account) else main_number(account), given)
    if account is None:
        account = snapshot.accounts.get(line.accounts[0]) if line is not None and line.accounts else None
        if account is None:
            return Screened("", "")
    area = line.area_code if line is not None else ""
    own = _own_accounts(snapshot, line, account)
    shown, fault = _screened(given, area, own)
    wished, other_fault = _screened(preferred, area, own)
    shown = shown or wished
    asserted = next((number for number in (wished, shown) if number and _may_assert(number, account)), "")
    asserted = asserted or main_number(account)
    return Screened(asserted, shown or asserted, fault or other_fault)


def asserted_number(snapshot: Snapshot, line: Line | None, account: Account | None, caller: str) -> str:
    """The number to vouch for. `caller` is what the router put into From: a number or a URI, as received."""
    return screen(snapshot, line, account, caller).asserted


def _own_accounts(snapshot: Snapshot, line: Line | None, account: Account) -> list[Account]:
    if line is None:
        return [account]
    others = (snapshot.accounts.get(user) for user in line.accounts if user != account.user)
    return [account, *(other for other in others if other is not None)]


def _may_assert(number: str, account: Account) -> bool:
    """A single account stands for its one number; a trunk for each of its numbers and ranges."""
    return account.kind is AccountKind.TRUNK and _is_assigned(number, account)


def _screened(given: str, area: str, own: list[Account]) -> tuple[str, str]:
    """The given number when it is one of the line's, or "", and why it may not be shown."""
    given = given[:MAX_CALLER]
    spoken = read(given.encode("utf-8", "replace")).spoken if given else ""
    if not _DIGITS.match(spoken):
        return "", ""  # a name is no number: nothing was given
    canonical = classify(given.encode("utf-8", "replace"), area).canonical
    for number in (canonical, "+" + spoken):  # many routers write E.164 without its "+"
        if number[0] == "+" and any(_is_assigned(number, account) for account in own):
            return number, ""
    why = forbidden_caller(given, area)
    return "", f"{why}, which no caller may show" if why else "not a number of this line"


def _is_assigned(number: str, account: Account) -> bool:
    """Whether a number is one of the account's, or lies in one of its ranges."""
    return any(
        number.startswith(own[:-1]) and len(own) <= len(number) <= 16 if own[-1] == "*" else number == own
        for own in account.numbers
    )


def reads_as_number(given: str) -> bool:
    """Whether a user part, URI or display name is nothing but a number, in digits of any script."""
    return bool(given) and _DIGITS.match(read(given[:MAX_CALLER].encode("utf-8", "replace")).spoken) is not None


def same_number(given: str, number: str, area_code: str = "") -> bool:
    """Whether `given`, a number or URI as received, is a spelling of the +E.164 `number`."""
    target = given[:MAX_CALLER].encode("utf-8", "replace")
    if not number:
        return False
    return classify(target, area_code).canonical == number or "+" + read(target).spoken == number


def forbidden_caller(given: str, area_code: str = "") -> str:
    """What a number is that must never be shown as a caller's (§ 120(1), (3) TKG), or "" when it may be shown."""
    if not given:
        return ""
    target = given[:MAX_CALLER].encode("utf-8", "replace")
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
    canonical = classify_incoming(given[:MAX_CALLER].encode("utf-8", "replace")).canonical if given else ""
    return canonical if canonical[:1] == "+" else ""


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
    if not given:
        return False
    destination = classify_incoming(given[:MAX_CALLER].encode("utf-8", "replace"))
    national = destination.canonical.startswith(("+49", "service:")) or given.lstrip("+").startswith(("49", "0049"))
    return national and destination.kind is not Class.MOBILE
