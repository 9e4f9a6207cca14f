"""What a dialled string means: canonical form, class and tariff prefix.

Pure; never raises. Every spelling is brought to one canonical form first, and only that form is classified, by its longest
known prefix and independent of its length: what is refused in one spelling is refused in all of them. Nothing is allowed by
default: what the plan does not know is RESERVED.
Left out: tariffs. RFC 3966 §5.1.5 (phone-context), ITU-T E.164, the plan of the Bundesnetzagentur in `policy.plan`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from policy.dialled import KNOWN_LENGTH, KNOWN_TARGETS, PORTING_PREFIX, Dialled, read
from policy.emergency import service_in
from policy.model import Destination
from policy.model import DestinationClass as Class
from policy.plan.areas import area_of, begins_area_code
from policy.plan.germany import LEAST_SUBSCRIBER, NATIONAL, SHORT_CODES, begins_range, range_of
from policy.plan.world import COUNTRY_CODES, HOME, LEAST, MOST, country_code_of, least_of, tariff_prefix

__all__ = ["canonical_prefix", "classify", "classify_incoming"]

MAX_NATIONAL = 24  # digits; the plan ends at 13, callers dial over a PBX's number
MAX_LOCAL = 11  # digits of a subscriber number without its area code
MAX_ASSIGNED = 11  # digits that new geographic numbers have without the 0; older ones reach 13

# TDDDG § 13(3), § 15(1): beside 110 and 112 these are never called with a hidden number.
_ALWAYS_SHOWN = frozenset({"service:116117", "service:124124"})
_REFUSAL = {400: (400, 28), 404: (404, 1), 416: (416, 28), 484: (484, 28)}


_Meaning = tuple[str, Class, str, int, str]  # canonical form, class, tariff prefix, status of a refusal, how it was read


def classify(target: bytes, area_code: str) -> Destination:
    """What `target` (a Request-URI or a dialled string) means to a caller in `area_code` ("02051", or "" for none)."""
    return _classify(target, area_code) if len(target) <= KNOWN_LENGTH else _classify.__wrapped__(target, area_code)


@lru_cache(maxsize=KNOWN_TARGETS)
def _classify(target: bytes, area_code: str) -> Destination:
    dialled = read(target)
    service = service_in(dialled)
    if service:
        canonical, how = f"service:{service}", dialled.how
        said = f"{canonical} {Class.EMERGENCY}: {how}"
        return Destination(_shown(target), canonical, Class.EMERGENCY, canonical, service, how=how, said=said)
    return _destination(target, dialled, _meaning(dialled, area_code))


def classify_incoming(target: bytes) -> Destination:
    """The same for a call from a trunk: no area code, no emergency call; E.164 without its "+" and porting prefixes go."""
    return _classify_incoming(target) if len(target) <= KNOWN_LENGTH else _classify_incoming.__wrapped__(target)


@lru_cache(maxsize=KNOWN_TARGETS)
def _classify_incoming(target: bytes) -> Destination:
    dialled = read(target)
    number = dialled.number
    if dialled.fault == PORTING_PREFIX:
        dialled = _ported(dialled)
    elif number and number[0] not in "0+" and not dialled.context and len(number) >= LEAST:
        dialled = dialled._replace(number="+" + number)
    return _destination(target, dialled, _meaning(dialled, ""))


def _ported(dialled: Dialled) -> Dialled:
    """A number behind the porting prefix that only networks use between each other, D and three digits: a national one."""
    rest = dialled.spoken[4:]
    number = rest if rest[:1] in ("+", "0") else "0" + rest
    if dialled.spoken[:1] not in ("d", "D") or re.fullmatch(r"\+?[0-9]+", number) is None:
        return dialled
    how = f"porting prefix {dialled.spoken[:4]} dropped"
    return dialled._replace(number=number, fault="", status=0, how=f"{how}, {dialled.how}" if dialled.how else how)


def _destination(target: bytes, dialled: Dialled, meaning: _Meaning) -> Destination:
    canonical, kind, prefix, refused, how = meaning
    status, cause = _REFUSAL[refused] if refused else (0, 0)
    if dialled.how:
        how = f"{how}, {dialled.how}"
    hide = dialled.hide and canonical not in _ALWAYS_SHOWN
    said = f"{canonical} {kind}: {how}"
    return Destination(_shown(target), canonical, kind, prefix, "", status, cause, how, hide, said)


def _shown(target: bytes) -> str:
    return target.decode("ascii") if target.isascii() and len(target) <= 256 else target[:256].decode("utf-8", "replace")


def _meaning(dialled: Dialled, area_code: str) -> _Meaning:
    number, context = dialled.number, dialled.context
    if not number:
        kind = Class.ROUTING if dialled.fault == PORTING_PREFIX else Class.INVALID
        return "-", kind, "", dialled.status, dialled.fault
    if number[0] == "+":
        return _international(number[1:], area_code)
    if context and not (context.startswith("+49") and _is_prefixed(number)):
        if not country_code_of(context):  # "+4" and digits that complete it: no scope of a number, and a way to hide one
            return "-", Class.RESERVED, "", 404, "phone-context without an assigned country code"
        return _international(context[1:] + number, area_code)  # RFC 3966 §5.1.5
    if number[0] == "0":
        if number[:2] == "00":
            return _international(number[2:], area_code)
        if number[:3] == "010":
            return _carrier(number)
        return _national(number[1:], area_code)
    return _local(number, area_code[1:])


def _is_prefixed(number: str) -> bool:
    """Whether a number of +49 stands as dialled: with a prefix, or a short code that no area code goes in front of."""
    return number[0] == "0" or (number[:2] == "11" and number != "115")


def _international(digits: str, area_code: str) -> _Meaning:
    """A number with its country code, without "+" or 00."""
    if not digits:
        return "-", Class.INVALID, "", 484, "prefix without a number"
    if digits.startswith(HOME):
        return _national(digits[2:], area_code)
    if digits in ("110", "112"):
        # NotrufV § 4(5) s. 1. "+110" and "+112" are emergency calls, so this must not be named in that form.
        return "-", Class.RESERVED, "", 404, "digits in front of an emergency number"
    for length in (3, 2, 1):
        code = digits[:length]
        kind = COUNTRY_CODES.get(code)
        if kind is not None:
            break
    else:
        canonical = "-" if digits[:1] == "0" else "+" + digits
        if any(code.startswith(digits) for code in COUNTRY_CODES):
            return canonical, Class.RESERVED, "", 484, "country code incomplete"
        return canonical, Class.RESERVED, "", 404, "country code not assigned"
    size = len(digits)
    status = 484 if size < least_of(code) else 404 if size > MOST else 0
    return "+" + digits, kind, "+" + tariff_prefix(digits, code), status, f"country code {code}"


def _carrier(number: str) -> _Meaning:
    """Carrier selection, 010xy or 0100yy, with whatever follows: the prefix decides."""
    length = 6 if number[3:4] == "0" else 5
    canonical = "carrier:" + number[:length]
    return canonical, Class.CARRIER_SELECTION, "carrier:010", 484 if len(number) < length else 0, "carrier selection"


def _national(digits: str, area_code: str) -> _Meaning:
    """A German number without its 0."""
    if digits[:1] == "0":
        digits = digits[1:]  # +490N, 00490N, +49(0)N: wrong, but meant as +49N
    if not digits:
        return "-", Class.INVALID, "", 484, "prefix without a number"
    if digits[0] == "0":
        # Behind a second 0 there is no number: named in that form, it would be read as another one.
        return "-", Class.RESERVED, "", 404, "no such range"
    found = range_of(digits)
    if found is None:
        return _geographic(digits, area_code[1:])
    prefix, entry = found
    if prefix in SHORT_CODES:
        return _short(digits, prefix)
    if digits == "32115":
        return _authority(digits, "+4932", "115 of national subscriber numbers")
    size, status, how = len(digits), 0, entry.name
    if entry.kind is Class.RESERVED:
        status = 484 if begins_range(digits) else 404
    elif size > MAX_NATIONAL:
        status = 404
    elif size < entry.least:
        status = 484
    elif size > entry.most:
        how = f"{how}, dialled over by {size - entry.most}"
    return "+" + HOME + digits, entry.kind, "+49" + prefix, status, how


def _geographic(digits: str, own: str) -> _Meaning:
    """A number in an area; `own` is the caller's area code without its 0, where it is known."""
    canonical = "+" + HOME + digits
    area = area_of(digits)
    if area is None:
        if begins_area_code(digits):
            return canonical, Class.GEOGRAPHIC, "+49", 484, "area code incomplete"
        return canonical, Class.RESERVED, "+49", 404, "no such area code"
    code, name = area
    prefix = "+49" + code
    subscriber = digits[len(code) :]
    if subscriber[:2] == "11" and len(subscriber) > 2:
        if subscriber == "115":
            # A subscriber number in every area: the caller's own is the one that is dialled as 115.
            return _short("115", "115") if code == own else _authority(digits, prefix, f"115 of 0{code} {name}")
        if subscriber in ("110", "112"):
            # NotrufV § 4(5) s. 1: an area code in front of 110 or 112 forbids the emergency call.
            return canonical, Class.RESERVED, prefix, 404, "area code and emergency number"
        if subscriber[:3] not in ("110", "112"):
            return canonical, Class.RESERVED, prefix, 404, "no subscriber number begins with 11"
    elif subscriber[:1] == "0":
        return canonical, Class.RESERVED, prefix, 404, "no subscriber number begins with 0"
    size = len(digits)
    status = 484 if len(subscriber) < LEAST_SUBSCRIBER else 404 if size > MAX_NATIONAL else 0
    return canonical, Class.GEOGRAPHIC, prefix, status, f"geographic, 0{code} {name}"


def _authority(digits: str, prefix: str, how: str) -> _Meaning:
    """115 with an area code in front, which decides whose 115 it is."""
    return "+" + HOME + digits, Class.AUTHORITY, prefix, 0, how


def _short(digits: str, prefix: str) -> _Meaning:
    """115, 116xyz, 118xy and 1180xy; digits behind the whole code are dialled over and ignored, but for 115."""
    length = SHORT_CODES.get(digits[:4]) or SHORT_CODES[prefix]
    entry = NATIONAL[prefix]
    if prefix == "115" and len(digits) > length:
        return "-", Class.RESERVED, "", 404, "no such short code"
    canonical = "service:" + digits[:length]
    return canonical, entry.kind, canonical, 484 if len(digits) < length else 0, entry.name


def _local(number: str, area: str) -> _Meaning:
    """A number dialled without a 0 in front; `area` is the area code without its 0, or ""."""
    if number[:2] == "11":
        prefix = number[:3]
        if prefix in SHORT_CODES:
            return _short(number, prefix)
        status = 484 if len(number) < 3 else 404
        return "-", Class.RESERVED, "", status, "no such short code"
    if number == "124124":
        return "service:124124", Class.RESERVED, "service:124124", 404, "sea rescue, mobile networks only"
    if not area:
        return "-", Class.INVALID, "", 484, "number without area code"
    is_long = len(area) + len(number) > MAX_ASSIGNED
    if len(number) > MAX_LOCAL or (is_long and number.startswith(HOME + area)):
        return "-", Class.INVALID, "", 404, "too long for a local number; country code without +?"
    canonical, kind, prefix, status, how = _national(area + number, "")
    return canonical, kind, prefix, status, f"local in 0{area}: {how}" if status else f"local in 0{area}"


def canonical_prefix(text: str) -> str:
    """The canonical prefix that an operator's rule means: "0900", "+49900", "0049900", "118", "01033". "" for none."""
    compact = "".join(text.split())
    for separator in "-.()/":
        compact = compact.replace(separator, "")
    head, colon, rest = compact.partition(":")
    if colon:
        return compact if head in ("service", "carrier") and rest.isascii() and rest.isdigit() else ""
    digits = compact[1:] if compact[:1] == "+" else compact
    if not (digits.isascii() and digits.isdigit()) or len(digits) > MAX_NATIONAL:
        return ""
    if digits.startswith("010") and compact[0] != "+":
        return "carrier:" + digits
    if compact[0] == "+":
        return _international_prefix(digits)
    if digits.startswith("00"):
        return _international_prefix(digits[2:])
    if digits.startswith("0"):
        return _international_prefix(HOME + digits[1:]) if len(digits) > 1 else ""
    return "service:" + digits if digits.startswith(("11", "124")) else ""


def _international_prefix(digits: str) -> str:
    if not digits or digits[0] == "0":
        return ""
    national = digits[2:].removeprefix("0") if digits.startswith(HOME) else ""
    if national[:3] in SHORT_CODES:
        return "service:" + national
    return "+" + HOME + national if national else "+" + digits
