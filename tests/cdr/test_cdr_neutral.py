"""cdr.neutral: no text of a peer becomes a formula, a control character or a second row, and each can be had back."""

from __future__ import annotations

import csv
import io
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdr import neutral

NASTY = st.text(
    alphabet=st.sampled_from(
        list("=+-@'\"\\,;| \t\r\n\x00u0041U\uff1d\uff0b\uff0d\uff20\u207a\u2212\u3000\u2028\u202e\ufeff\ud800ä9")
    ),
    max_size=12,
)
ANY = NASTY | st.text(st.characters(), max_size=40)
E164 = st.from_regex(r"\+[0-9]{1,15}", fullmatch=True)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", ""),
        ("sip:v1001-1@sip.example;user=phone", "sip:v1001-1@sip.example;user=phone"),
        ("+492051555101", "+492051555101"),
        ("+", "'+"),
        ("+1234567890123456", "'+1234567890123456"),
        ("+49 2051", "'+49 2051"),
        ("+49+1", "'+49+1"),
        ("-", "-"),
        ("-1", "'-1"),
        ("=1+1", "'=1+1"),
        ("  =1+1", "'  =1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\uff1d1", "'\uff1d1"),
        ("\u22121", "'\u22121"),
        ("\t=1", "\\u0009=1"),
        ("\r\n=1", "\\u000d\\u000a=1"),
        ("'=1", "''=1"),
        ("'s", "'s"),
        ("a;=cmd", "a;'=cmd"),
        ('"=cmd', "\"'=cmd"),
        ("a\\b", "a\\\\b"),
        ("\u202egpj", "\\u202egpj"),
        ("\U000e0041", "\\U000e0041"),
        ("Grüße", "Grüße"),
        ("a+b=c@d", "a+b=c@d"),
    ],
)
def test_text_of_value_is(value: str, written: str) -> None:
    assert neutral.text(value) == written
    assert neutral.restore(written) == value


@settings(max_examples=400)
@given(ANY)
def test_restore_gives_every_value_back(value: str) -> None:
    assert neutral.restore(neutral.text(value)) == value


@settings(max_examples=400)
@given(ANY)
def test_text_is_no_formula_and_holds_no_control_character(value: str) -> None:
    """Read with any separator and with or without quotes, no cell of it is a formula."""
    written = neutral.text(value)
    assert not {unicodedata.category(char) for char in written} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    written.encode()
    if re.fullmatch(r"\+[0-9]{1,15}|-", written):
        return
    for cell in re.split(r'[,;|"]', written):
        start = unicodedata.normalize("NFKC", cell).strip().replace("\u2212", "-")[:1]
        assert start not in {"=", "+", "-", "@"}


@given(st.lists(ANY, min_size=1, max_size=4), st.sampled_from(",;"), st.sampled_from(",;\t|"))
def test_text_in_a_row_read_with_the_wrong_separator_is_no_formula(values: list[str], right: str, wrong: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=right).writerow([neutral.text(value) for value in values])
    row = buffer.getvalue()
    assert row.count("\n") == 1
    for cell in next(csv.reader([row], delimiter=wrong)):
        harmless = re.fullmatch(r"\+[0-9]{1,15}|-", cell) or any(re.fullmatch(r"\+[0-9]{1,15}|-", value) for value in values)
        assert harmless or cell.strip()[:1] not in {"=", "+", "-", "@"}


@given(E164)
def test_text_of_a_number_stays_readable(number: str) -> None:
    assert neutral.text(number) == number


@given(ANY)
def test_restore_of_any_text_does_not_raise(value: str) -> None:
    neutral.restore(value)
