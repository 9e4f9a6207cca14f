"""Thousands of spellings of one destination, drawn from a seed: what a person, a router or somebody with an intent may write.

Every step keeps the meaning: the national or international form, what stands in the phone-context, feature codes, separators,
percent-escapes, parameters, scheme and host.
"""

from __future__ import annotations

import random
import re

from policy.plan.world import country_code_of

HOSTS = (
    "sip.example",
    "[2001:db8::1]:5061",
    "192.0.2.7",
    "elsewhere.example;user=phone",
    "x;transport=tcp?Subject=0900",
    "110",
)
DROPPED = (
    "ext=12",
    "isub=99",
    "postd=pp22",
    "npdi",
    "rn=+49900123456",
    "cic=+4910",
    "enumdi",
    "tgrp=a",
    "trunk-context=+49",
    "x",
)
SEPARATORS = "-.() "


def national_forms(national: str, area: str = "") -> list[tuple[str, str]]:
    """(number, phone-context or "") of a German number without its 0; `area` is the caller's area code with its 0."""
    numbers = [f"0{national}", f"+49{national}", f"0049{national}", f"+490{national}", f"00490{national}"]
    forms = [(number, "") for number in numbers]
    forms += [(f"0{national}", "+49"), (f"0{national}", "sip.example"), (f"+49{national}", "+43"), (f"0049{national}", "+49")]
    forms += [(national[cut:], "+49" + national[:cut]) for cut in range(min(5, len(national))) if _is_bare(national[cut:])]
    own = area[1:]
    subscriber = national.removeprefix(own)
    if own and subscriber != national and 3 <= len(subscriber) <= 11 and _is_bare(subscriber):
        forms += [(subscriber, context) for context in ("", "sip.example", "+49" + own)]
    return forms


def foreign_forms(digits: str) -> list[tuple[str, str]]:
    """The same of a number with its country code, other than 49."""
    forms = [
        ("+" + digits, ""),
        ("00" + digits, ""),
        ("00" + digits, "+49"),
        ("00" + digits, "sip.example"),
        ("+" + digits, "+49"),
    ]
    return forms + [
        (digits[cut:], "+" + digits[:cut])
        for cut in range(1, 5)
        if _is_bare(digits[cut:]) and country_code_of("+" + digits[:cut])
    ]


def service_forms(code: str) -> list[tuple[str, str]]:
    """The same of 116xyz and 118xy, which have no form with an area code."""
    forms = [(number, "") for number in (code, "0" + code, "+49" + code, "0049" + code)]
    forms += [(code, context) for context in ("+49", "+492051", "sip.example")]
    return forms + ([(code[3:], "+49" + code[:3])] if _is_bare(code[3:]) else [])


def _is_bare(number: str) -> bool:
    """Whether this behind a phone-context is not read as dialled, with a prefix or as a short code."""
    return number[:1] not in ("", "0") and number[:2] != "11"


def spell(draw: random.Random, forms: list[tuple[str, str]], *, feature: str | None = None) -> str:
    """One target of one of the forms, in one of countless spellings. `feature` is put in front, else one may be."""
    number, context = draw.choice(forms)
    if feature is None:
        feature = draw.choice(("", "", "", "*31#", "#31#"))
    number = feature + number + draw.choice(("", "", "", "#", "##"))
    user = noisy(draw, number)
    params = draw.sample(DROPPED, draw.choice((0, 0, 1, 2)))
    if context:
        name = "".join(draw.choice((char, char.upper())) for char in "phone-context")
        value = context if context[0] != "+" else escaped(draw, "+" + separated(draw, context[1:]))
        params.insert(draw.randint(0, len(params)), f"{name}={value}")
    user = ";".join([user, *params])
    scheme = draw.choice(("", "sip:", "sips:", "tel:", "SIP:", "Tel:", "sIpS:"))
    if scheme.lower() == "tel:" or (not scheme and draw.random() < 0.8):
        return scheme + user
    return f"{scheme}{user}@{draw.choice(HOSTS)}"


def noisy(draw: random.Random, number: str) -> str:
    """Separators and escapes, or neither."""
    if draw.random() < 0.4:
        return number
    return escaped(draw, separated(draw, number))


def separated(draw: random.Random, text: str) -> str:
    share = draw.choice((0.0, 0.1, 0.4))
    return "".join(char + ("".join(draw.choices(SEPARATORS, k=2)) if draw.random() < share else "") for char in text)


def escaped(draw: random.Random, text: str) -> str:
    share = draw.choice((0.0, 0.1, 1.0))
    found = []
    for char in text:
        code = f"%{ord(char):02X}" if draw.random() < share else char
        found.append(draw.choice((code, code.lower())))
    return "".join(found)


def is_emergency_text(text: str) -> bool:
    """Whether digits, with or without a plus, are an emergency call: 110 and 112 in front, or behind a carrier's code."""
    return bool(re.match(r"(?:010(?:0\d\d|[1-9]\d))?11[02]", text)) or text in ("+110", "+112")
