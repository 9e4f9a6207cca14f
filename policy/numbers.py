"""What a dialled string means: canonical form, class and tariff prefix.

Pure; never raises. Every spelling is brought to one canonical form first, and only that form is classified, by its longest
known prefix and independent of its length: what is refused in one spelling is refused in all of them. Nothing is allowed by
default: what the plan does not know is RESERVED.
Left out: the list of area codes (a national number from 2 to 9 is geographic unless the plan says otherwise), tariffs.
RFC 3966 §5.1.5 (phone-context), ITU-T E.164, the plan of the Bundesnetzagentur in `policy.plan`.
"""

from __future__ import annotations

from policy.dialled import Dialled, read
from policy.emergency import service_in
from policy.model import Destination
from policy.model import DestinationClass as Class
from policy.plan.germany import NATIONAL, SHORT_AREA_CODES
from policy.plan.world import COUNTRY_CODES, LEAST, MOST

__all__ = ["canonical_prefix", "classify", "classify_incoming"]

MAX_NATIONAL = 24  # digits; the plan ends at 13, callers dial over a PBX's number
MAX_LOCAL = 11  # digits of a subscriber number without its area code
LEAST_LOCAL = 3
HOME = "49"

# TDDDG § 13(3), § 15(1): beside 110 and 112 these are never called with a hidden number.
_ALWAYS_SHOWN = frozenset({"service:116117", "service:124124"})
_SHORT_LENGTH = {"115": 3, "116": 6, "118": 5}
_BY_LENGTH = tuple({prefix: entry for prefix, entry in NATIONAL.items() if len(prefix) == length} for length in range(1, 5))
_REFUSAL = {400: (400, 28), 404: (404, 1), 416: (416, 28), 484: (484, 28)}


class _Meaning:
    """Destination under construction: cheaper than replacing fields of a frozen one."""

    __slots__ = ("canonical", "how", "kind", "prefix", "status")

    def __init__(self, canonical: str, kind: Class, prefix: str = "", status: int = 0, how: str = "") -> None:
        self.canonical = canonical
        self.kind = kind
        self.prefix = prefix
        self.status = status
        self.how = how


def classify(target: bytes, area_code: str) -> Destination:
    """What `target` (a Request-URI or a dialled string) means to a caller in `area_code` ("02051", or "" for none)."""
    dialled = read(target)
    service = service_in(dialled)
    if service:
        canonical = f"service:{service}"
        return Destination(_shown(target), canonical, Class.EMERGENCY, canonical, service, how=dialled.how)
    return _destination(target, dialled, _meaning(dialled, area_code))


def classify_incoming(target: bytes) -> Destination:
    """The same for a call from a trunk: no area code, no emergency call, and E.164 without its "+" is understood."""
    dialled = read(target)
    number = dialled.number
    if number and number[0] not in "0+" and not dialled.context and len(number) >= LEAST:
        dialled = dialled._replace(number="+" + number)
    return _destination(target, dialled, _meaning(dialled, ""))


def _destination(target: bytes, dialled: Dialled, meaning: _Meaning) -> Destination:
    status, cause = _REFUSAL[meaning.status] if meaning.status else (0, 0)
    how = f"{meaning.how}, {dialled.how}" if dialled.how else meaning.how
    hide = dialled.hide and meaning.canonical not in _ALWAYS_SHOWN
    return Destination(_shown(target), meaning.canonical, meaning.kind, meaning.prefix, "", status, cause, how, hide)


def _shown(target: bytes) -> str:
    return target[:256].decode("utf-8", "replace")


def _meaning(dialled: Dialled, area_code: str) -> _Meaning:
    number, context = dialled.number, dialled.context
    if not number:
        kind = Class.ROUTING if dialled.fault == "porting prefix" else Class.INVALID
        return _Meaning("-", kind, "", dialled.status, dialled.fault)
    if number[0] == "+":
        return _international(number[1:], area_code)
    if context and not (context.startswith("+49") and _is_prefixed(number)):
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
        return _Meaning("-", Class.INVALID, "", 484, "prefix without a number")
    if digits.startswith(HOME):
        return _national(digits[2:], area_code)
    if digits in ("110", "112"):
        # NotrufV § 4(5) s. 1. "+110" and "+112" are emergency calls, so this must not be named in that form.
        return _Meaning("-", Class.RESERVED, "", 404, "digits in front of an emergency number")
    for length in (3, 2, 1):
        code = digits[:length]
        kind = COUNTRY_CODES.get(code)
        if kind is not None:
            break
    else:
        canonical = "-" if digits[:1] == "0" else "+" + digits
        return _Meaning(canonical, Class.RESERVED, "", 404, "country code not assigned")
    size = len(digits)
    status = 484 if size < LEAST else 404 if size > MOST else 0
    return _Meaning("+" + digits, kind, "+" + code, status, f"country code {code}")


def _carrier(number: str) -> _Meaning:
    """Carrier selection, 010xy or 0100yy, with whatever follows: the prefix decides."""
    length = 6 if number[3:4] == "0" else 5
    canonical = "carrier:" + number[:length]
    return _Meaning(canonical, Class.CARRIER_SELECTION, "carrier:010", 484 if len(number) < length else 0, "carrier selection")


def _national(digits: str, area_code: str) -> _Meaning:
    """A German number without its 0."""
    if digits[:1] == "0":
        digits = digits[1:]  # +490N, 00490N, +49(0)N: wrong, but meant as +49N
    canonical = "+" + HOME + digits
    for length in (4, 3, 2, 1):
        prefix = digits[:length]
        entry = _BY_LENGTH[length - 1].get(prefix)
        if entry is not None:
            break
    else:
        if not digits:
            return _Meaning("-", Class.INVALID, "", 484, "prefix without a number")
        # Behind a second 0 there is no number: named in that form, it would be read as another one.
        return _Meaning("-", Class.RESERVED, "", 404, "no such range")
    kind = entry.kind
    if kind is Class.GEOGRAPHIC:
        return _geographic(digits, area_code[1:])
    if prefix in _SHORT_LENGTH:
        return _short(digits, prefix)
    size = len(digits)
    status = 404 if kind is Class.RESERVED or size > MAX_NATIONAL else 484 if size < entry.least else 0
    return _Meaning(canonical, kind, "+49" + prefix, status, entry.name)


def _geographic(digits: str, own: str) -> _Meaning:
    """A number in an area; `own` is the caller's area code without its 0, where it is known."""
    canonical, size, tail = "+" + HOME + digits, len(digits), digits[-3:]
    if size > MAX_NATIONAL:
        return _Meaning(canonical, Class.GEOGRAPHIC, "+49", 404, "too long")
    if tail in ("110", "112") and _is_area_code(digits[:-3], own):
        # NotrufV § 4(5) s. 1: an area code in front of 110 or 112 forbids the emergency call, and no subscriber has 11.
        return _Meaning(canonical, Class.RESERVED, "+49", 404, "area code and emergency number")
    if tail == "115" and digits[:-3] == own:
        return _short("115", "115")
    return _Meaning(canonical, Class.GEOGRAPHIC, "+49", 484 if size < 5 else 0, "geographic")


def _is_area_code(code: str, own: str) -> bool:
    """Whether `code` is a whole area code; of the long ones, four digits without a short code in front must be one."""
    if code == own or code in SHORT_AREA_CODES:
        return True
    return len(code) == 4 and code[:3] not in SHORT_AREA_CODES and code[:2] not in SHORT_AREA_CODES


def _short(digits: str, prefix: str) -> _Meaning:
    """115, 116xyz, 118xy and 1180xy; digits behind the whole code are dialled over and ignored, but for 115."""
    length = 6 if digits[:4] == "1180" else _SHORT_LENGTH[prefix]
    kind = NATIONAL[prefix].kind
    if prefix == "115" and len(digits) > length:
        return _Meaning("-", Class.RESERVED, "", 404, "no such short code")
    canonical = "service:" + digits[:length]
    return _Meaning(canonical, kind, canonical, 484 if len(digits) < length else 0, NATIONAL[prefix].name)


def _local(number: str, area: str) -> _Meaning:
    """A number dialled without a 0 in front; `area` is the area code without its 0, or ""."""
    if number[:2] == "11":
        prefix = number[:3]
        if prefix in _SHORT_LENGTH:
            return _short(number, prefix)
        status = 484 if len(number) < 3 else 404
        return _Meaning("-", Class.RESERVED, "", status, "no such short code")
    if number == "124124":
        return _Meaning("service:124124", Class.RESERVED, "service:124124", 404, "sea rescue, mobile networks only")
    if not area:
        return _Meaning("-", Class.INVALID, "", 484, "number without area code")
    if len(number) > MAX_LOCAL or number.startswith(HOME + area):
        return _Meaning("-", Class.INVALID, "", 404, "too long for a local number; country code without +?")
    if len(number) < LEAST_LOCAL:
        return _Meaning("-", Class.INVALID, "", 484, "local number too short")
    return _local_in(area, number)


def _local_in(area: str, number: str) -> _Meaning:
    meaning = _national(area + number, "")
    meaning.how = f"local in 0{area}"
    return meaning


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
    if national[:3] in _SHORT_LENGTH:
        return "service:" + national
    return "+" + HOME + national if national else "+" + digits
