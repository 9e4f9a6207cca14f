"""The German numbering plan as a table: national prefix (without the 0) to class and length.

Source: the plan of the Bundesnetzagentur, (0)-ranges, as in force in 2026. A range that is not listed is reserved and refused.
`least` is the number of national digits below which a number is incomplete; there is no upper bound by class, because
callers dial over a PBX's number and extra digits never make another number of it.
Left out: the area codes themselves; every national number from 2 to 9 outside of the listed ranges is geographic here.
"""

from __future__ import annotations

from typing import NamedTuple

from policy.model import DestinationClass as Class

__all__ = ["NATIONAL", "SHORT_AREA_CODES", "Range"]


class Range(NamedTuple):
    """One range: class, least national digits, and a name for explanations."""

    kind: Class
    least: int
    name: str


_RESERVED = Range(Class.RESERVED, 0, "reserve")

NATIONAL: dict[str, Range] = {
    # geographic; the ranges among them that are something else follow
    **{digit: Range(Class.GEOGRAPHIC, 5, "geographic") for digit in "23456789"},
    "31": Range(Class.RESERVED, 0, "test numbers"),
    "32": Range(Class.NATIONAL, 11, "national subscriber number"),
    "500": _RESERVED,
    "501": _RESERVED,
    "700": Range(Class.PERSONAL, 11, "personal number"),
    "701": _RESERVED,
    "800": Range(Class.FREEPHONE, 10, "freephone"),
    "801": _RESERVED,
    "900": Range(Class.PREMIUM, 10, "premium rate"),  # every service digit behind 900, 9009 (dialers) included
    "901": _RESERVED,
    "902": _RESERVED,
    # 1: services and mobile networks
    "1": _RESERVED,
    "115": Range(Class.AUTHORITY, 3, "public authorities"),
    "116": Range(Class.SOCIAL, 6, "social service"),
    "118": Range(Class.DIRECTORY, 5, "directory enquiries"),
    "12": Range(Class.INNOVATIVE, 3, "innovative services"),
    "137": Range(Class.TELEVOTING, 10, "televoting"),
    "138": Range(Class.TELEVOTING, 7, "televoting (old)"),
    "15": Range(Class.MOBILE, 10, "mobile"),
    "160": Range(Class.MOBILE, 10, "mobile"),
    "162": Range(Class.MOBILE, 10, "mobile"),
    "163": Range(Class.MOBILE, 10, "mobile"),
    "164": Range(Class.PAGING, 4, "paging"),
    "168": Range(Class.PAGING, 4, "paging"),
    "169": Range(Class.PAGING, 4, "paging"),
    "17": Range(Class.MOBILE, 10, "mobile"),
    **{f"180{digit}": Range(Class.SHARED_COST, 7, "shared cost") for digit in "1234567"},
    **{f"18{digit}": Range(Class.USER_GROUP, 8, "user group") for digit in "123456789"},
    "198": Range(Class.ROUTING, 4, "routing between networks"),
    "199": Range(Class.ROUTING, 4, "routing inside a network"),
}

# Area codes of two and three digits: with them a number of the form area code + 110 or 112 is told from a subscriber number.
_SHORT = (
    "30 40 69 89 "
    "201 202 203 208 209 211 212 214 221 228 231 234 241 251 261 271 281 291 "
    "331 335 340 341 345 351 355 361 365 371 375 381 385 391 395 "
    "421 431 441 451 461 471 481 491 511 521 531 541 551 561 571 581 591 "
    "611 621 631 641 651 661 671 681 711 721 731 741 751 761 771 781 791 "
    "811 821 831 841 851 861 871 881 906 911 921 931 941 951 961 971 981 991"
)
SHORT_AREA_CODES = frozenset(_SHORT.split())
