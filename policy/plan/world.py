"""Country codes of ITU-T E.164, what a call to them is, and which region of a shared code a number belongs to.

An unlisted code is not assigned and refused. No code is the beginning of another one. The regions are data of
libphonenumber (Apache-2.0) in `countries.txt`, read when the first of them is asked for.
"""

from __future__ import annotations

from functools import cache

from policy.model import DestinationClass as Class
from policy.plan.areas import rows_of

__all__ = ["COUNTRY_CODES", "HOME", "LEAST", "MOST", "country_code_of", "least_of", "region_of", "tariff_prefix"]

HOME = "49"
LEAST, MOST = 7, 15  # digits of an international number with its country code; 15 is the bound of E.164 §6.2.1
_LEAST_OF = {"800": 11, "808": 11}  # three digits and eight (E.169.1, E.169.3)

_COUNTRIES = (
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 "
    "81 82 84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 "
    "231 232 233 234 235 236 237 238 239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 "
    "256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 "
    "357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 "
    "502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 "
    "678 679 680 681 682 683 685 686 687 688 689 690 691 692 850 852 853 855 856 880 886 960 961 962 963 "
    "964 965 966 967 968 970 971 972 973 974 975 976 977 992 993 994 995 996 998 "
)

COUNTRY_CODES: dict[str, Class] = {
    **dict.fromkeys(_COUNTRIES.split(), Class.INTERNATIONAL),
    "800": Class.FREEPHONE,  # universal international freephone number
    "808": Class.INTERNATIONAL_SPECIAL,  # international shared cost
    "870": Class.INTERNATIONAL_SPECIAL,  # satellite
    "878": Class.INTERNATIONAL_SPECIAL,  # universal personal telecommunications
    "881": Class.INTERNATIONAL_SPECIAL,  # satellite
    "882": Class.INTERNATIONAL_SPECIAL,  # international networks
    "883": Class.INTERNATIONAL_SPECIAL,  # international networks
    "888": Class.INTERNATIONAL_SPECIAL,  # disaster relief
    "979": Class.INTERNATIONAL_SPECIAL,  # international premium rate
}

_LENGTHS = (3, 2, 1)


def country_code_of(number: str) -> str:
    """The country code that a `+E.164` number, or the beginning of one, has, as "+43"; "" where none is assigned."""
    if number[:1] != "+":
        return ""
    for length in _LENGTHS:
        code = number[1 : length + 1]
        if code in COUNTRY_CODES or code == HOME:
            return "+" + code
    return ""


def least_of(code: str) -> int:
    """The least digits of a number with this country code, the code included."""
    return _LEAST_OF.get(code, LEAST)


@cache
def _regions() -> dict[str, str]:
    """Country codes, and the parts of shared ones that are not of the region in charge, to region."""
    return rows_of("countries.txt")


@cache
def _lengths() -> dict[str, tuple[int, ...]]:
    """Shared country codes to the lengths of their parts, longest first, the code itself last."""
    found: dict[str, set[int]] = {}
    for prefix in _regions():
        code = country_code_of("+" + prefix)[1:]
        found.setdefault(code, set()).add(len(prefix))
    return {code: tuple(sorted(lengths, reverse=True)) for code, lengths in found.items() if len(lengths) > 1}


def tariff_prefix(digits: str, code: str) -> str:
    """The longest prefix that a tariff tells a number by: its part of the shared `code`, else `code`; all without "+"."""
    lengths = _lengths().get(code)
    if lengths is not None:
        regions = _regions()
        for length in lengths:
            if digits[:length] in regions:
                return digits[:length]
    return code


def region_of(number: str) -> str:
    """The region (ISO 3166, "001" for none in particular) that a `+E.164` number belongs to; "" where none is assigned."""
    code = country_code_of(number)[1:]
    return _regions().get(tariff_prefix(number[1:], code), "") if code else ""
