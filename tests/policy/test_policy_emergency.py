"""Which targets are emergency calls (NotrufV § 4(5), RFC 5031)."""

from __future__ import annotations

import pytest

from policy.emergency import service_of
from policy.numbers import classify

EMERGENCY = [
    ("112", "112"),
    ("110", "110"),
    ("sip:112@any-host.example", "112"),
    ("sips:110@[2001:db8::1]:5061", "110"),
    ("SIP:112@x;user=phone?Priority=emergency", "112"),
    ("sip:112", "112"),
    ("sip:110;transport=udp", "110"),
    ("tel:112", "112"),
    ("tel:112;phone-context=+49", "112"),
    ("tel:112;phone-context=+49234", "112"),
    ("tel:110;phone-context=sip.example", "110"),
    ("sip:112;phone-context=+49@sip.example;user=phone", "112"),
    ("tel:112;ext=3;phone-context=+49;phone-context=+43", "112"),
    ("1-1-2", "112"),
    ("1.1(2)", "112"),
    ("1%201%202", "112"),
    ("%31%31%32", "112"),
    ("sip:%31%31%30@x", "110"),
    ("112%23", "112"),
    ("112#", "112"),
    ("112233", "112"),
    ("1120", "112"),
    ("11012", "110"),
    ("112" + "9" * 3000, "112"),
    ("sip:112" + "9" * 3000 + "@x", "112"),
    ("sip:112:secret@x", "112"),
    ("sip:112@a@b", "112"),
    ("112%0D%0A", "112"),
    ("urn:service:sos", "112"),
    ("urn:service:sos.police", "110"),
    ("urn:service:sos.fire", "112"),
    ("urn:service:sos.ambulance", "112"),
    ("urn:service:sos.physician", "112"),
    ("urn:service:sos.marine", "112"),
    ("urn:service:sos.unheard-of", "112"),
    ("URN:Service:SOS.Police", "110"),
    ("urn:service:sos.police.municipal", "110"),
    ("urn:service:%73os", "112"),
    ("+112", "112"),
    ("tel:+110", "110"),
    ("%2B112", "112"),
    ("*31#112", "112"),
    ("*31%23110", "110"),
    ("#31#112", "112"),
    ("*31#+112", "112"),
    ("*31#01033112", "112"),
    ("sip:sos@sip.velbert.example", "112"),
    ("sip:SOS@sip.velbert.example", "112"),
    ("01033112", "112"),
    ("01033110", "110"),
    ("01033112233", "112"),
    ("010033112", "112"),
    ("%EF%BC%91%EF%BC%91%EF%BC%92", "112"),
    ("\u0661\u0661\u0662", "112"),
    ("sip:\uff11\uff11\uff10@x", "110"),
]
NEVER = [
    "0112",
    "00112",
    "0110",
    "000112",
    "0234112",
    "02051112",
    "+492051112",
    "00492051110",
    "+49112",
    "0049112",
    "+49(0)112",
    "+490112",
    "tel:2;phone-context=+4911",
    "tel:12;phone-context=+1",
    "tel:10;phone-context=+1",
    "00110",
    "1112",
    "9112",
    "0234112233",
    "03023125112",
    "06990009112",
    "+112233",
    "+1120",
    "*21*112#",
    "*112",
    "%2531%2531%2532",
    "\uff10112",
    "x112",
    "%00112",
    "sos112",
    "\u00e9112",
    "\uff0d\uff11\uff11\uff12",
    "sip:sosta@x",
    "sip:alice@112",
    "sip:112.0.0.1",
    "sip:1.1.2",
    "urn:service:sosx",
    "urn:service:sos-test",
    "urn:service:counseling.sos",
    "urn:nena:service:sos",
    "http://112",
    "mailto:112@x",
    "01011",
    "0103112",
    "115",
    "116117",
    "124124",
    "911",
    "999",
    "11",
    "1",
    "",
]


@pytest.mark.parametrize(("target", "service"), EMERGENCY)
def test_service_of_emergency_target_is_found(target: str, service: str) -> None:
    assert service_of(target.encode()) == service
    found = classify(target.encode(), "02051")
    assert (found.service, found.canonical, found.status, found.clir) == (service, f"service:{service}", 0, False)


@pytest.mark.parametrize("target", NEVER)
def test_service_of_other_target_is_not_an_emergency(target: str) -> None:
    assert service_of(target.encode()) == ""
    assert classify(target.encode(), "02051").service == ""
    assert classify(target.encode(), "").service == ""


@pytest.mark.parametrize("target", NEVER)
def test_canonical_form_of_other_target_is_not_an_emergency_when_read_again(target: str) -> None:
    canonical = classify(target.encode(), "02051").canonical
    assert service_of(canonical.encode()) == ""


@pytest.mark.parametrize("context", ["", ";phone-context=+49", ";phone-context=+49234", ";phone-context=x.example"])
@pytest.mark.parametrize("prefix", ["0", "00", "0234", "02051", "+49", "+490", "0049", "+492051", "00492051", "1", "9"])
@pytest.mark.parametrize("number", ["110", "112"])
@pytest.mark.parametrize("shape", ["{}", "sip:{}@x", "tel:{}", "*31#{}"])
def test_service_of_digits_in_front_forbid_emergency(shape: str, number: str, prefix: str, context: str) -> None:
    """NotrufV § 4(5) s. 1."""
    assert service_of(shape.format(prefix + number + context).encode()) == ""
