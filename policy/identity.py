"""The caller's number that we vouch for (P-Asserted-Identity, RFC 3325).

Pure. § 120(1) TKG: only a number that is assigned to the customer. A single account has one number; a trunk may show any
of its own, and gets its main number when it shows another one or none. Left out: "CLIP no screening", § 120(2), and
strict refusal instead of substitution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.model import AccountKind
from policy.numbers import classify

if TYPE_CHECKING:
    from policy.model import Account, Line, Snapshot

__all__ = ["asserted_number", "main_number"]


def main_number(account: Account) -> str:
    """The account's first exact number, else extension 0 of its first range, else ""."""
    for number in account.numbers:
        if not number.endswith("*"):
            return number
    return account.numbers[0][:-1] + "0" if account.numbers else ""


def asserted_number(snapshot: Snapshot, line: Line | None, account: Account | None, caller: str) -> str:
    """The number to vouch for. `caller` is what the router put into From: a number or a URI, as received."""
    if account is None:
        user = line.accounts[0] if line is not None and line.accounts else ""
        account = snapshot.accounts.get(user)
        if account is None:
            return ""
    if account.kind is AccountKind.TRUNK and caller and line is not None:
        canonical = classify(caller.encode("utf-8", "replace"), line.area_code).canonical
        if canonical[:1] == "+" and _is_assigned(canonical, account):
            return canonical
    return main_number(account)


def _is_assigned(number: str, account: Account) -> bool:
    """Whether a number is one of the account's, or lies in one of its ranges."""
    return any(
        number.startswith(own[:-1]) and len(number) >= len(own) if own[-1] == "*" else number == own for own in account.numbers
    )
