"""Dialled strings to destinations, row by row of the numbering plan."""

from __future__ import annotations

import subprocess
import sys

import phonenumbers
import pytest
from policy_samples import spellings

from policy.model import DestinationClass as Class
from policy.numbers import canonical_prefix, classify, classify_incoming
from policy.plan.world import COUNTRY_CODES

PLAN = [  # dialled, canonical, class, status
    ("03023125001", "+493023125001", Class.GEOGRAPHIC, 0),
    ("020519881", "+4920519881", Class.GEOGRAPHIC, 0),
    ("0621512345", "+49621512345", Class.GEOGRAPHIC, 0),
    ("988111", "+492051988111", Class.GEOGRAPHIC, 0),
    ("19222", "+49205119222", Class.GEOGRAPHIC, 0),
    ("015228817386", "+4915228817386", Class.MOBILE, 0),
    ("01601234567", "+491601234567", Class.MOBILE, 0),
    ("01621234567", "+491621234567", Class.MOBILE, 0),
    ("01631234567", "+491631234567", Class.MOBILE, 0),
    ("01713920012", "+491713920012", Class.MOBILE, 0),
    ("0171133920012", "+49171133920012", Class.MOBILE, 0),  # with the mailbox infix
    ("01611234567", "+491611234567", Class.RESERVED, 404),
    ("01651234567", "+491651234567", Class.RESERVED, 404),
    ("01661234567", "+491661234567", Class.RESERVED, 404),
    ("01671234567", "+491671234567", Class.RESERVED, 404),
    ("01641234567", "+491641234567", Class.PAGING, 0),
    ("01681234", "+491681234", Class.PAGING, 0),
    ("01691234", "+491691234", Class.PAGING, 0),
    ("070012345678", "+4970012345678", Class.PERSONAL, 0),
    ("08001234567", "+498001234567", Class.FREEPHONE, 0),
    ("080012345678", "+4980012345678", Class.FREEPHONE, 0),
    ("0080012345678", "+80012345678", Class.FREEPHONE, 0),
    ("0080812345678", "+80812345678", Class.INTERNATIONAL_SPECIAL, 0),
    ("0097912345678", "+97912345678", Class.INTERNATIONAL_SPECIAL, 0),
    ("00870773123456", "+870773123456", Class.INTERNATIONAL_SPECIAL, 0),
    ("0088161234567", "+88161234567", Class.INTERNATIONAL_SPECIAL, 0),
    ("0088212345678", "+88212345678", Class.INTERNATIONAL_SPECIAL, 0),
    ("0088312345678", "+88312345678", Class.INTERNATIONAL_SPECIAL, 0),
    *((f"0180{digit}123456", f"+49180{digit}123456", Class.SHARED_COST, 0) for digit in range(1, 8)),
    *((f"0180{digit}123456", f"+49180{digit}123456", Class.RESERVED, 404) for digit in (0, 8, 9)),
    ("01371123456", "+491371123456", Class.TELEVOTING, 0),
    ("01379123456", "+491379123456", Class.TELEVOTING, 0),
    ("01381234", "+491381234", Class.TELEVOTING, 0),
    ("01361234567", "+491361234567", Class.RESERVED, 404),
    *((f"0900{digit}123456", f"+49900{digit}123456", Class.PREMIUM, 0) for digit in range(9)),
    ("09009123456", "+499009123456", Class.PREMIUM, 484),
    ("090091234567", "+4990091234567", Class.PREMIUM, 0),
    ("11833", "service:11833", Class.DIRECTORY, 0),
    ("118000", "service:118000", Class.DIRECTORY, 0),
    ("1180", "service:1180", Class.DIRECTORY, 484),
    ("+4911833", "service:11833", Class.DIRECTORY, 0),
    ("011833", "service:11833", Class.DIRECTORY, 0),
    ("1183399", "service:11833", Class.DIRECTORY, 0),
    ("116117", "service:116117", Class.SOCIAL, 0),
    ("+49116117", "service:116117", Class.SOCIAL, 0),
    ("11611", "service:11611", Class.SOCIAL, 484),
    ("115", "service:115", Class.AUTHORITY, 0),
    ("+49115", "service:115", Class.AUTHORITY, 0),
    ("02051115", "service:115", Class.AUTHORITY, 0),
    ("+492051115", "service:115", Class.AUTHORITY, 0),
    ("0234115", "+49234115", Class.AUTHORITY, 0),
    ("01033", "carrier:01033", Class.CARRIER_SELECTION, 0),
    ("0103303023125001", "carrier:01033", Class.CARRIER_SELECTION, 0),
    ("010330049900123", "carrier:01033", Class.CARRIER_SELECTION, 0),
    ("010012", "carrier:010012", Class.CARRIER_SELECTION, 0),
    ("0100121234", "carrier:010012", Class.CARRIER_SELECTION, 0),
    ("0103", "carrier:0103", Class.CARRIER_SELECTION, 484),
    ("01212345", "+491212345", Class.INNOVATIVE, 0),
    *((f"018{digit}123456", f"+4918{digit}123456", Class.USER_GROUP, 0) for digit in range(1, 10)),
    ("01888123456", "+491888123456", Class.USER_GROUP, 0),
    ("0190123456", "+49190123456", Class.RESERVED, 404),
    ("0191123456", "+49191123456", Class.RESERVED, 404),
    ("0195123456", "+49195123456", Class.RESERVED, 404),
    ("0198933", "+49198933", Class.ROUTING, 0),
    ("+49198933", "+49198933", Class.ROUTING, 0),
    ("01991234", "+491991234", Class.ROUTING, 0),
    ("D00103023125001", "-", Class.ROUTING, 404),
    ("031012345", "+4931012345", Class.RESERVED, 404),
    ("031112345", "+4931112345", Class.RESERVED, 404),
    ("032123456789", "+4932123456789", Class.NATIONAL, 0),
    *((f"0{code}123456", f"+49{code}123456", Class.RESERVED, 404) for code in (500, 501, 701, 801, 901, 902)),
    ("01112345", "+491112345", Class.RESERVED, 404),
    ("013012345", "+4913012345", Class.RESERVED, 404),
    ("01412345", "+491412345", Class.RESERVED, 404),
    ("0043664123456", "+43664123456", Class.INTERNATIONAL, 0),
    ("+12125550123", "+12125550123", Class.INTERNATIONAL, 0),
    ("0090212345678", "+90212345678", Class.INTERNATIONAL, 0),
    ("0018001234567", "+18001234567", Class.INTERNATIONAL, 0),
    ("0021012345678", "+21012345678", Class.RESERVED, 404),
    ("00999123456789", "+999123456789", Class.RESERVED, 404),
    ("0043664", "+43664", Class.INTERNATIONAL, 484),
    ("+4312345678901234", "+4312345678901234", Class.INTERNATIONAL, 404),
    ("124124", "service:124124", Class.RESERVED, 404),
    ("113", "-", Class.RESERVED, 404),
    ("1112", "-", Class.RESERVED, 404),
    ("9112", "+4920519112", Class.GEOGRAPHIC, 0),
    ("911", "+492051911", Class.GEOGRAPHIC, 0),
    ("0112", "+49112", Class.RESERVED, 404),
    ("00112", "-", Class.RESERVED, 404),
    ("0234112", "+49234112", Class.RESERVED, 404),
    ("0234110", "+49234110", Class.RESERVED, 404),
    ("02051112", "+492051112", Class.RESERVED, 404),
    ("02052112", "+492052112", Class.RESERVED, 404),
    ("+49112", "+49112", Class.RESERVED, 404),
    ("0234112233", "+49234112233", Class.GEOGRAPHIC, 0),
    ("03023125112", "+493023125112", Class.GEOGRAPHIC, 0),
    ("06990009112", "+496990009112", Class.GEOGRAPHIC, 0),
    ("020519881111234", "+4920519881111234", Class.GEOGRAPHIC, 0),
    ("492051988111", "-", Class.INVALID, 404),
    ("98", "+49205198", Class.GEOGRAPHIC, 484),
    ("", "-", Class.INVALID, 484),
    ("+", "-", Class.INVALID, 484),
    ("0", "-", Class.INVALID, 484),
    ("00", "-", Class.INVALID, 484),
    ("+49", "-", Class.INVALID, 484),
    ("+4900900123456", "-", Class.RESERVED, 404),
    ("000900123456", "-", Class.RESERVED, 404),
    ("+490", "-", Class.INVALID, 484),
    ("0900", "+49900", Class.PREMIUM, 484),
    ("0171", "+49171", Class.MOBILE, 484),
    ("00003023125001", "-", Class.RESERVED, 404),
    ("+00493023125001", "-", Class.RESERVED, 404),
]


@pytest.mark.parametrize(("dialled", "canonical", "kind", "status"), PLAN)
def test_classify_plan_row_gives_canonical_class_and_status(dialled: str, canonical: str, kind: Class, status: int) -> None:
    found = classify(dialled.encode(), "02051")
    assert (found.canonical, found.kind, found.status, found.service) == (canonical, kind, status, "")
    assert found.cause == {0: 0, 404: 1, 484: 28}[status]


FAULTS = [  # target, status
    ("sip:03023125001:09001123456@sip.swbn.example", 400),
    ("sip:03023125001@a@b", 400),
    ("03023125001%00", 400),
    ("0302312%0D%0A5001", 400),
    ("%EF%BC%900302312", 400),
    ("\u0660\u0663\u06602312", 400),
    ("%2530302312", 400),
    ("0302312%3", 400),
    ("tel:12345;phone-context=+49;phone-context=+43", 400),
    ("tel:12345;phone-context=+49x", 400),
    ("tel:12345;phone-context=+", 400),
    ("sip:" + "1" * 3000 + "@x", 400),
    ("sip:alice@sip.example", 404),
    ("030/2312", 404),
    ("*21*09001123456#", 404),
    ("**7", 404),
    ("0" * 41, 404),
    ("urn:service:counseling", 404),
    ("http://x/112", 416),
    ("sip:sip.example", 484),
]


@pytest.mark.parametrize(("target", "status"), FAULTS)
def test_classify_fault_is_no_number(target: str, status: int) -> None:
    found = classify(target.encode(), "02051")
    assert (found.canonical, found.kind, found.status) == ("-", Class.INVALID, status)


NATIONALS = ["3023125001", "9001123456", "1713920012", "1806123456", "18812345678", "8001234567", "70012345678", "12345678"]


@pytest.mark.parametrize("national", NATIONALS)
def test_classify_every_spelling_gives_one_destination(national: str) -> None:
    """design: one number, one verdict."""
    found = {
        (destination.canonical, destination.kind, destination.status, destination.prefix)
        for destination in (classify(target.encode(), "02051") for target in spellings(national))
    }
    assert len(found) == 1
    assert next(iter(found))[0] == f"+49{national}"


@pytest.mark.parametrize(
    ("target", "canonical"),
    [
        ("tel:988111;phone-context=+492051", "+492051988111"),
        ("tel:988111;phone-context=+49234", "+49234988111"),
        ("sip:988111;phone-context=sip.example@sip.example;user=phone", "+492051988111"),
        ("tel:123456;phone-context=+499001", "+499001123456"),
        ("tel:123456;phone-context=%2B49%39001", "+499001123456"),
        ("tel:9001123456;phone-context=+49", "+499001123456"),
        ("tel:09001123456;phone-context=+49", "+499001123456"),
        ("tel:33;phone-context=+49118", "service:11833"),
        ("tel:11833;phone-context=+492051", "service:11833"),
        ("tel:010330900;phone-context=+49", "carrier:01033"),
        ("tel:0043664123456;phone-context=+49", "+43664123456"),
        ("tel:664123456;phone-context=+43", "+43664123456"),
        ("tel:+493023125001;phone-context=+499001", "+493023125001"),
        ("tel:115;phone-context=+492051", "service:115"),
        ("tel:115;phone-context=+49234", "+49234115"),
    ],
)
def test_classify_phone_context_qualifies_local_numbers(target: str, canonical: str) -> None:
    """RFC 3966 §5.1.5."""
    assert classify(target.encode(), "02051").canonical == canonical


@pytest.mark.parametrize(
    ("target", "hidden"),
    [("*31#03023125001", True), ("#31#03023125001", False), ("03023125001", False), ("*31#116117", False), ("*31#112", False)],
)
def test_classify_feature_code_hides_caller_where_the_law_lets_it(target: str, hidden: bool) -> None:
    """TDDDG § 15(1): no effect on 110, 112, 116117 and 124124."""
    assert classify(target.encode(), "02051").clir is hidden


def test_classify_without_area_code_refuses_local_number() -> None:
    assert (classify(b"988111", "").status, classify(b"988111", "").cause) == (484, 28)


@pytest.mark.parametrize(
    ("target", "canonical"),
    [
        ("sip:+492051988111@x", "+492051988111"),
        ("sip:492051988111@x", "+492051988111"),
        ("02051988111", "+492051988111"),
        ("00492051988111", "+492051988111"),
        ("112", "-"),
        ("988111", "-"),
    ],
)
def test_classify_incoming_understands_e164_without_plus(target: str, canonical: str) -> None:
    found = classify_incoming(target.encode())
    assert (found.canonical, found.service) == (canonical, "")


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("0900", "+49900"),
        ("+49 900", "+49900"),
        ("+49 (0) 900", "+49900"),
        ("0049-900", "+49900"),
        ("00490900", "+49900"),
        ("+43", "+43"),
        ("0043900", "+43900"),
        ("118", "service:118"),
        ("+49118", "service:118"),
        ("0118", "service:118"),
        ("service:11833", "service:11833"),
        ("010", "carrier:010"),
        ("01033", "carrier:01033"),
        ("", ""),
        ("+", ""),
        ("0", ""),
        ("00", ""),
        ("988", ""),
        ("+0900", ""),
        ("\uff10900", ""),
        ("service:x", ""),
        ("sip:0900", ""),
    ],
)
def test_canonical_prefix_of_operator_text(text: str, prefix: str) -> None:
    assert canonical_prefix(text) == prefix


def test_country_codes_agree_with_another_source() -> None:
    known = {str(code) for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE} - {"49"}
    assert set(COUNTRY_CODES) == known
    for code in COUNTRY_CODES:
        assert not any(other != code and other.startswith(code) for other in COUNTRY_CODES), code


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS - {"DE"}))
def test_classify_foreign_example_number_is_international(region: str) -> None:
    example = phonenumbers.example_number(region)
    assert example is not None
    text = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
    found = classify(text.replace("+", "00", 1).encode(), "02051")
    assert (found.canonical, found.kind, found.status) == (text, Class.INTERNATIONAL, 0)


def test_policy_never_loads_the_other_source() -> None:
    code = "import sys, policy, policy.numbers, policy.explain, policy.parse; sys.exit('phonenumbers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
