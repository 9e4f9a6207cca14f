"""The German numbering plan as a table: national prefix (without the 0) to class, length and tariff.

Source: the plan of the Bundesnetzagentur, (0)-ranges, as in force in 2026. Everything that is neither listed here nor begins
with an area code (`policy.plan.areas`) is reserved and refused. The longest prefix counts; a range that carriers price in
parts is listed in those parts, so that the prefix found is the longest tariff prefix of the number.
"""

from __future__ import annotations

from typing import NamedTuple

from policy.model import DestinationClass as Class

__all__ = ["LEAST_SUBSCRIBER", "NATIONAL", "SHORT_CODES", "Range", "begins_range", "range_of"]


class Range(NamedTuple):
    """One range: class, least and most digits behind +49 that numbers are assigned with, and a name for explanations.

    A number with fewer digits is incomplete. More digits never refuse it and never make another number of it: callers dial
    over a PBX's number, and a class is decided by the prefix alone.
    """

    kind: Class
    least: int
    most: int
    name: str


def _reserve(name: str) -> Range:
    return Range(Class.RESERVED, 0, 0, name)


LEAST_SUBSCRIBER = 3  # digits of a subscriber number behind its area code; 5 national digits at least, area codes have 2 to 5

_MOBILE = Range(Class.MOBILE, 10, 13, "mobile")  # 10 or 11; with a mailbox infix up to 13
_PAGING = Range(Class.PAGING, 4, 14, "paging")
_USER_GROUP = Range(Class.USER_GROUP, 8, 14, "user group")  # (0)18: not reachable from the public network since 2014

NATIONAL: dict[str, Range] = {
    # among the area codes
    "31": _reserve("test numbers"),
    "32": Range(Class.NATIONAL, 11, 11, "national subscriber number"),
    "500": _reserve("reserve"),
    "501": _reserve("reserve"),
    "700": Range(Class.PERSONAL, 11, 11, "personal number"),
    "701": _reserve("reserve"),
    "800": Range(Class.FREEPHONE, 10, 15, "freephone"),  # 800 and 7 digits; older numbers are longer
    "801": _reserve("reserve"),
    "900": Range(Class.PREMIUM, 10, 10, "premium rate"),
    **{f"900{digit}": Range(Class.PREMIUM, 10, 10, "premium rate") for digit in "012345678"},
    "9009": Range(Class.PREMIUM, 11, 11, "premium rate (dialers)"),
    "901": _reserve("reserve"),
    "902": _reserve("reserve"),
    # 1: services and mobile networks
    "1": _reserve("reserve"),
    "110": _reserve("digits in front of an emergency number"),  # NotrufV § 4(5) s. 1
    "112": _reserve("digits in front of an emergency number"),
    "115": Range(Class.AUTHORITY, 3, 3, "public authorities"),
    "116": Range(Class.SOCIAL, 6, 6, "social service"),
    "118": Range(Class.DIRECTORY, 5, 6, "directory enquiries"),
    "12": Range(Class.INNOVATIVE, 3, 13, "innovative services"),
    **{f"137{digit}": Range(Class.TELEVOTING, 10, 10, "televoting") for digit in "123456789"},
    "137": Range(Class.TELEVOTING, 10, 10, "televoting"),
    "1370": _reserve("reserve"),
    "138": Range(Class.TELEVOTING, 7, 10, "televoting (old)"),
    "15": _MOBILE,
    "160": _MOBILE,
    "162": _MOBILE,
    "163": _MOBILE,
    "164": _PAGING,
    "168": _PAGING,
    **{f"168{digit}": _PAGING for digit in "0123456789"},
    "169": _PAGING,
    **{f"169{digit}": _PAGING for digit in "123"},
    **{f"1695{digit}": _PAGING for digit in "123"},
    "17": _MOBILE,
    **{f"180{digit}": Range(Class.SHARED_COST, 7, 10, "shared cost") for digit in "1234567"},  # older numbers are shorter
    **{f"18{digit}": _USER_GROUP for digit in "123456789"},
    "1888": Range(Class.USER_GROUP, 8, 14, "user group of the federal administration"),
    "190": _reserve("premium rate until 2005"),
    **{f"19{digit}": _reserve("online dial-in") for digit in "12345"},
    "198": Range(Class.ROUTING, 4, 15, "routing between networks"),
    "1987": Range(Class.ROUTING, 4, 15, "routing between networks to 116xyz"),
    "1988": Range(Class.ROUTING, 4, 15, "routing between networks to freephone numbers"),
    "1989": Range(Class.ROUTING, 4, 15, "routing between networks to 118xy"),
    "199": Range(Class.ROUTING, 4, 15, "routing inside a network"),
}

# Codes that are dialled without a 0, by their first digits, and their length; 1180xy has six digits.
SHORT_CODES = {"115": 3, "116": 6, "118": 5, "1180": 6}

_LENGTHS = tuple(sorted({len(prefix) for prefix in NATIONAL}, reverse=True))
_BESIDE_AREA_CODES = frozenset(prefix[:2] for prefix in NATIONAL if prefix[0] != "1")


def range_of(national: str) -> tuple[str, Range] | None:
    """The longest listed prefix of a national number without its 0, and its range; None for one with an area code."""
    if national[0] != "1" and national[:2] not in _BESIDE_AREA_CODES:
        return None
    for length in _LENGTHS:
        prefix = national[:length]
        found = NATIONAL.get(prefix)
        if found is not None:
            return prefix, found
    return None


def begins_range(national: str) -> bool:
    """Whether more digits could make a number of an assigned range of these."""
    return any(
        prefix.startswith(national) and prefix != national and prefix not in SHORT_CODES and found.kind is not Class.RESERVED
        for prefix, found in NATIONAL.items()
    )
