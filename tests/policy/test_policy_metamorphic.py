"""All spellings of one destination are one destination and one decision; none goes where another one may not.

The random tests are drawn from the seed in their name; design, invariants 1 and 8; NotrufV § 4(5).
"""

from __future__ import annotations

import random

import phonenumbers
import pytest
from metamorphic_spellings import foreign_forms, is_emergency_text, national_forms, service_forms, spell
from phonenumbers import PhoneNumberFormat, PhoneNumberType
from policy_samples import AREA, account_of, outgoing, snapshot_with

from policy import evaluate
from policy.emergency import service_of
from policy.model import BlockRule, CallAttempt, Destination, Direction, Line, LineStatus, Verdict
from policy.model import DestinationClass as Class
from policy.numbers import classify
from policy.plan.areas import area_codes

PROFILES = ("velbert", "badnauheim")
BLOCKS = (
    BlockRule("town", "+49234", "x"),
    BlockRule("one", "+491711234567", "x"),
    BlockRule("abroad", "+43", "x"),
    BlockRule("services", "service:116", "x"),
)
# A number of every range of the plan, the blocked and the unassigned ones included.
NATIONAL = (
    "3023125001 205198811 2051988111 23498811 33053123456 212912345 6215612345 603299981 205119222 "
    "15228817386 1601234567 1621234567 1631234567 1711234567 1713920012 1711 1641234567 16861234 "
    "70012345678 8001234567 1801123456 1807123456 1371123456 1381234 9001123456 90091234567 900 1212345 "
    "18112345678 1888123456 190123456 19112345 198933 1987117 1991234 3112345 32123456789 500123456 "
    "701123456 801123456 902123456 1301234567 1411234 1611234567 2040123456 2340123456 234115 33053115 "
    "234113456 23411833 900112345678901234 2051 20519 3 33 "
)
FOREIGN = (
    "43664123456 12125550123 18765550123 77272123456 80012345678 80812345678 979123456789 881612345678 "
    "99912345678 2101234567 4312345678901234 4366 3906698123 90212345678 390612345678 88312345678 "
)
SERVICES = "116117 116000 11611 11833 11869 118000 1180 11880 "


def line_of(profile: str, status: LineStatus = LineStatus.ACTIVE) -> Line:
    return Line("L1", profile, status, None, "town", AREA[profile], ("a1",))


def essence(found: Destination) -> tuple[str, Class, str, int, int, str]:
    return found.canonical, found.kind, found.prefix, found.status, found.cause, found.service


def named(sort: str, numbers: str) -> list[tuple[str, str]]:
    return [(sort, number) for number in numbers.split()]


DESTINATIONS = named("national", NATIONAL) + named("foreign", FOREIGN) + named("service", SERVICES)
FORMS = {"foreign": foreign_forms, "service": service_forms}


def forms_of(sort: str, number: str, area: str) -> list[tuple[str, str]]:
    return national_forms(number, area) if sort == "national" else FORMS[sort](number)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("sort", "number"), DESTINATIONS)
def test_spellings_of_one_destination_give_one_canonical_form_and_one_decision(sort: str, number: str, profile: str) -> None:
    """60 to 160 spellings of each of some 80 destinations for two profiles: above ten thousand."""
    draw = random.Random(f"{sort} {number} {profile}")
    line = line_of(profile)
    snapshot = snapshot_with(*BLOCKS, line=line)
    destinations: dict[object, str] = {}
    decisions: dict[object, str] = {}
    for _ in range(100):
        target = spell(draw, forms_of(sort, number, AREA[profile]))
        found = evaluate(outgoing(target, line), snapshot, 0)
        destinations[essence(found.destination)] = target
        callee = found.callee and found.callee.user
        decisions[found.verdict, found.rule, found.status, found.cause, callee, found.channels, found.asserted] = target
    assert len(destinations) == 1, destinations
    assert len(decisions) == 1, decisions
    plain = {"national": "+49" + number, "foreign": "+" + number, "service": number}[sort]
    assert essence(classify(plain.encode(), AREA[profile])) in destinations


REFUSED = [
    *named("national", "9001123456 90091234567 90041234567 9002123 1212345 18112345678 1888123456 198933 1988800123 1991234"),
    *named("national", "2349881 1711234567 1611234567 3112345 2040123456 190123456 19112345 1301234567 23411833"),
    *named("foreign", "43664123456 979123456789 881612345678 88312345678 99912345678"),
    *named("service", "11833 118000 116117"),
]
FRONTS = "01033 010012 01033- 010-33-0049 0198 01989 +4919890 D001 *21* *67* 00 000 +00 %00"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("sort", "number"), REFUSED)
def test_no_spelling_of_a_refused_number_is_allowed(sort: str, number: str, profile: str) -> None:
    draw = random.Random(f"refused {sort} {number} {profile}")
    line = line_of(profile)
    snapshot = snapshot_with(*BLOCKS, line=line)
    for _ in range(150):
        forms = forms_of(sort, number, AREA[profile])
        if draw.random() < 0.3:  # digits dialled over
            forms = [(text + "".join(draw.choices("0123456789", k=draw.randint(1, 9))), context) for text, context in forms]
        feature = draw.choice(FRONTS.split()) if draw.random() < 0.3 else None
        if feature == "00" or (feature in ("000", "+00") and sort == "foreign"):
            forms = [form for form in forms if form[0][:1] == "+"]  # before digits it may make another number of them
        target = spell(draw, forms, feature=feature)
        found = evaluate(outgoing(target, line), snapshot, 0)
        assert found.verdict is Verdict.DENY, (target, found.destination)


FRONT_DIGITS = "0 00 0049 +49 +490 00490 0234 02051 +49234 +492051 06032 033053 1 9 000 +"
ANY_LINE = [line_of(profile, status) for profile in PROFILES for status in LineStatus]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_is_not_an_emergency_call_goes_to_an_emergency_centre(seed: int) -> None:
    """NotrufV § 4(5) s. 1: whatever stands in front of 110 and 112 forbids the connection, carrier selection excepted."""
    draw = random.Random(f"front {seed}")
    made = 0
    while made < 500:
        front = draw.choice((*FRONT_DIGITS.split(), "".join(draw.choices("0123456789", k=draw.randint(1, 6)))))
        behind = "".join(draw.choices("0123456789", k=draw.choice((0, 0, 1, 4))))
        text = front + draw.choice(("110", "112")) + behind
        if is_emergency_text(text):
            continue
        made += 1
        line = draw.choice(ANY_LINE)
        target = spell(draw, [(text, draw.choice(("", "", "+49", "+492051", "sip.example")))])
        found = evaluate(outgoing(target, line), snapshot_with(line=line), 0)
        assert found.verdict is not Verdict.EMERGENCY, target
        assert not found.psap
        assert found.destination.kind is not Class.EMERGENCY
        assert service_of(target.encode()) == ""


@pytest.mark.parametrize("seed", range(8))
def test_every_spelling_of_an_emergency_number_goes_to_the_emergency_centre(seed: int) -> None:
    """NotrufV § 4(5) s. 2 and 3, on lines of every state but the terminated."""
    draw = random.Random(f"emergency {seed}")
    lines = [line for line in ANY_LINE if line.status is not LineStatus.TERMINATED]
    for _ in range(500):
        service = draw.choice(("110", "112"))
        front = draw.choice(("", "", "01033", "010012"))
        behind = "".join(draw.choices("0123456789", k=draw.choice((0, 0, 1, 8, 40))))
        line = draw.choice(lines)
        target = spell(draw, [(front + service + behind, draw.choice(("", "", "+49", "+49234", "sip.example", "+1")))])
        account = draw.choice((account_of(line.profile), None))
        attempt = CallAttempt(Direction.OUTGOING, target.encode(), line, account, "", draw.choice((0, 99, None)))
        found = evaluate(attempt, snapshot_with(BlockRule("all", "service:11", "x"), BlockRule("rest", "+", "x"), line=line), 0)
        assert (found.verdict, found.destination.canonical) == (Verdict.EMERGENCY, f"service:{service}"), target
        assert found.psap


def oracle_forms(number: phonenumbers.PhoneNumber) -> list[str]:
    """How the other library writes a number, for dialling and for people."""
    written = [phonenumbers.format_number(number, form) for form in (0, 1, 2, 3)]  # E164, INTERNATIONAL, NATIONAL, RFC3966
    return [*written, phonenumbers.format_out_of_country_calling_number(number, "DE")]


@pytest.mark.parametrize("seed", range(4))
def test_geographic_numbers_agree_with_another_source(seed: int) -> None:
    draw = random.Random(f"geographic {seed}")
    codes = list(area_codes())
    for _ in range(300):
        code = draw.choice(codes)
        text = f"0{code}{draw.randint(2, 9)}{''.join(draw.choices('0123456789', k=draw.randint(3, 13 - len(code) - 2)))}"
        number = phonenumbers.parse(text, "DE")
        assert phonenumbers.number_type(number) is PhoneNumberType.FIXED_LINE
        canonical = phonenumbers.format_number(number, PhoneNumberFormat.E164)
        for form in oracle_forms(number):
            if "/" not in form:
                found = classify(form.encode(), "02051")
                assert (found.canonical, found.kind, found.status) == (canonical, Class.GEOGRAPHIC, 0), form


@pytest.mark.parametrize("seed", range(4))
def test_foreign_numbers_agree_with_another_source(seed: int) -> None:
    draw = random.Random(f"foreign {seed}")
    regions = sorted(phonenumbers.SUPPORTED_REGIONS - {"DE"})
    kinds = (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE, PhoneNumberType.PREMIUM_RATE, PhoneNumberType.TOLL_FREE)
    for region in draw.sample(regions, 120):
        number = phonenumbers.example_number_for_type(region, draw.choice(kinds))
        if number is None:
            continue
        canonical = phonenumbers.format_number(number, PhoneNumberFormat.E164)
        if len(canonical) <= 7:
            continue
        own = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
        for form in oracle_forms(number):
            if form != own and "/" not in form:
                found = classify(form.encode(), "02051")
                assert (found.canonical, found.kind, found.status) == (canonical, Class.INTERNATIONAL, 0), form
        digits = canonical[1:]
        assert {essence(classify(spell(draw, foreign_forms(digits)).encode(), "02051")) for _ in range(20)} == {
            essence(classify(canonical.encode(), ""))
        }


KINDS = {
    PhoneNumberType.MOBILE: Class.MOBILE,
    PhoneNumberType.VOICEMAIL: Class.MOBILE,
    PhoneNumberType.PAGER: Class.PAGING,
    PhoneNumberType.TOLL_FREE: Class.FREEPHONE,
    PhoneNumberType.PERSONAL_NUMBER: Class.PERSONAL,
    PhoneNumberType.UAN: Class.USER_GROUP,
}


@pytest.mark.parametrize("seed", range(4))
def test_service_ranges_agree_with_another_source_where_it_knows_them(seed: int) -> None:
    """It knows fewer: premium numbers with 1, 3 and 5 alone, and televoting partly as premium or shared cost."""
    draw = random.Random(f"ranges {seed}")
    compared = 0
    while compared < 300:
        text = f"01{''.join(draw.choices('0123456789', k=draw.randint(8, 11)))}"
        kind = KINDS.get(phonenumbers.number_type(phonenumbers.parse(text, "DE")))
        if kind is not None:
            found = classify(text.encode(), "02051")
            assert (found.kind, found.status) == (kind, 0), text
            compared += 1
