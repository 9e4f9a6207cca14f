"""Operators' CSV files: what is read, and that every fault is reported with its place and without secrets."""

from __future__ import annotations

import hashlib
import time

import pytest
from policy_samples import PROFILES

from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, PsapRoute
from policy.parse import NEEDED_LINE_COLUMNS as LINE_COLUMNS
from policy.parse import LinesImport, PolicyError, assigned_number, read_lines
from policy.parse_rules import read_blocks, read_psap
from policy.table import MAX_CELL

HEADER = ",".join(LINE_COLUMNS) + "\n"
GOOD = "L1,velbert,active,2,town,02051,a1,single,pw,02051988111"


def lines_of(*rows: str, header: str = HEADER) -> LinesImport:
    return read_lines(header + "".join(row + "\n" for row in rows), file="lines.csv", realm="sip.example", profiles=PROFILES)


def faults_of(*rows: str, header: str = HEADER) -> list[tuple[int, str]]:
    with pytest.raises(PolicyError) as raised:
        lines_of(*rows, header=header)
    assert all(fault.file == "lines.csv" and fault.reason for fault in raised.value.faults)
    assert all(str(fault) in str(raised.value) for fault in raised.value.faults)
    return [(fault.row, fault.column) for fault in raised.value.faults]


def ha1(function: str, user: str, password: str) -> str:
    return hashlib.new(function, f"{user}:sip.example:{password}".encode()).hexdigest()


def test_read_lines_single_accounts_become_one_line() -> None:
    found = lines_of(
        GOOD, "L1,,,,,,a2,,pw2,+49 2051 9881-12", "", "# remark", "L2,badnauheim,,,town,06032,b1,,x y,0049603299981"
    )
    assert found.lines == (
        Line("L1", "velbert", LineStatus.ACTIVE, 2, "town", "02051", ("a1", "a2")),
        Line("L2", "badnauheim", LineStatus.ACTIVE, None, "town", "06032", ("b1",)),
    )
    secrets = {
        name: ha1(function, "a1", "pw")
        for name, function in (("MD5", "md5"), ("SHA-256", "sha256"), ("SHA-512-256", "sha512_256"))
    }
    assert found.accounts[0] == Account("a1", "L1", AccountKind.SINGLE, secrets, ("+492051988111",))
    assert [account.numbers for account in found.accounts] == [("+492051988111",), ("+492051988112",), ("+49603299981",)]
    assert found.accounts[2].ha1["MD5"] == ha1("md5", "b1", "x y")


def test_read_lines_trunk_has_numbers_and_ranges() -> None:
    found = lines_of(
        "T,velbert,,30,town,02051,t1,trunk,pw,+492051988*",
        "T,,,,,,t1,trunk,,02051777",
        "T,velbert,,30,town,02051,t1,trunk,pw,020517780*",
    )
    assert found.accounts[0].numbers == ("+492051988*", "+492051777", "+4920517780*")
    assert found.lines[0].channels == 30


def test_read_lines_hashes_are_taken_as_they_are() -> None:
    md5, sha = "A" * 32, "b" * 64
    found = lines_of(
        GOOD.replace("pw", f"ha1:{md5}"),
        GOOD.replace("a1", "a2").replace("111", "112").replace("pw", f"ha1:SHA-256:{sha} ha1:{md5}"),
    )
    assert found.accounts[0].ha1 == {"MD5": "a" * 32}
    assert found.accounts[1].ha1 == {"MD5": "a" * 32, "SHA-256": sha}


def test_read_lines_columns_in_any_order_and_with_byte_order_mark() -> None:
    order = list(reversed(LINE_COLUMNS))
    cells = dict(zip(LINE_COLUMNS, GOOD.split(","), strict=True))
    text = "\ufeff" + ",".join(order) + "\r\n" + ",".join(f'"{cells[name]}"' for name in order) + "\r\n"
    assert read_lines(text, file="x", realm="sip.example", profiles=PROFILES) == lines_of(GOOD)


OF_A_LINE = [(3, name) for name in ("area_code", "channels", "location", "profile", "status")]


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        (["L 1,velbert,,,town,02051,a1,,pw,02051988111"], [(2, "line")]),
        ([",velbert,,,town,02051,a1,,pw,02051988111"], [(2, "line")]),
        ([GOOD.replace("velbert", "nobody")], [(2, "profile")]),
        ([GOOD.replace("active", "asleep")], [(2, "status")]),
        ([GOOD.replace(",2,", ",0,")], [(2, "channels")]),
        ([GOOD.replace(",2,", ",-1,")], [(2, "channels")]),
        ([GOOD.replace(",2,", ",\u0662,")], [(2, "channels")]),
        ([GOOD.replace(",2,", ",10001,")], [(2, "channels")]),
        ([GOOD.replace("town", "")], [(2, "location")]),
        ([GOOD.replace("town", "*")], [(2, "location")]),
        ([GOOD.replace("02051,", "2051,")], [(2, "area_code")]),
        ([GOOD.replace("02051,", "030,")], [(2, "area_code")]),
        ([GOOD.replace("a1", "a 1")], [(2, "account")]),
        ([GOOD.replace("a1", "a:1")], [(2, "account")]),
        ([GOOD.replace("a1", "")], [(2, "account")]),
        ([GOOD.replace("single", "double")], [(2, "kind")]),
        ([GOOD.replace("pw", "")], [(2, "password")]),
        ([GOOD.replace("pw", "ha1:abc")], [(2, "password")]),
        ([GOOD.replace("pw", "ha1:SHA-1:" + "a" * 40)], [(2, "password")]),
        ([GOOD.replace("pw", "ha1:" + "g" * 32)], [(2, "password")]),
        ([GOOD.replace("pw", "ha1:" + "a" * 32 + " ha1:" + "b" * 32)], [(2, "password")]),
        ([GOOD.replace("02051988111", "")], [(2, "number")]),
        ([GOOD.replace("02051988111", "988111")], [(2, "number")]),
        ([GOOD.replace("02051988111", "09001123456")], [(2, "number")]),
        ([GOOD.replace("02051988111", "0137112345")], [(2, "number")]),
        ([GOOD.replace("02051988111", "+43664123456")], [(2, "number")]),
        ([GOOD.replace("02051988111", "0112")], [(2, "number")]),
        ([GOOD.replace("02051988111", "02051112")], [(2, "number")]),
        ([GOOD.replace("02051988111", "*31#02051988111")], [(2, "number")]),
        ([GOOD.replace("02051988111", "02051" + "9" * 12)], [(2, "number")]),
        ([GOOD.replace("02051988111", "02051988*")], [(2, "number")]),
        (["T,velbert,,,town,02051,t,trunk,x,02051*1"], [(2, "number")]),
        (["T,velbert,,,town,02051,t,trunk,x,0*"], [(2, "number")]),
        (["T,velbert,,,town,02051,t,trunk,x,030*"], [(2, "number")]),
        ([GOOD, GOOD.replace("a1", "a2")], [(3, "number")]),
        ([GOOD, "L1,,,,,,a1,,,02051988112"], [(3, "number")]),
        ([GOOD, "L2,velbert,,,town,02051,a1,,pw,02051988112"], [(3, "account")]),
        ([GOOD, "L1,badnauheim,barred_out,3,city,02052,a2,,pw,02051988112"], OF_A_LINE),
        ([GOOD, "L1,,,,,,a1,trunk,other,02051988112"], [(3, "kind"), (3, "number"), (3, "password")]),
        ([GOOD, "T,velbert,,,town,02051,t,trunk,x,+492051988*"], [(2, "number")]),
        (["T,velbert,,,town,02051,t,trunk,x,+4920519881*", "S,velbert,,,town,02051,s,trunk,x,+492051988*"], [(2, "number")]),
        ([GOOD, "L1,,,,,,t,trunk,x,+492051777*"], [(2, "kind")]),
        ([f"L1,velbert,,,town,02051,a{n},,pw,0205198{n}00" for n in range(11)], [(2, "kind")]),
        (["L1,velbert"], [(2, "")]),
        ([GOOD + ",more"], [(2, "")]),
        ([GOOD.replace("town", "x" * (MAX_CELL + 1))], [(2, "location")]),
        ([GOOD.replace("town", "to\x07wn")], [(2, "location")]),
        (['L1,"vel"bert'], [(2, "")]),
    ],
)  # fmt: skip
def test_read_lines_fault_names_row_and_column(rows: list[str], faults: list[tuple[int, str]]) -> None:
    assert sorted(faults_of(*rows)) == faults


def test_read_lines_all_faults_are_reported_at_once() -> None:
    found = faults_of(
        "L2,nope,x,0,,2051,a 2,foo,pw,0900123456",
        "L3,velbert,,,town,02051,t1,single,ha1:zz,988111",
        "L4,velbert",
    )
    assert sorted(found) == [
        *((2, name) for name in ("account", "area_code", "channels", "location", "number", "profile", "status")),
        *((3, name) for name in ("number", "password")),
        (4, ""),
    ]


@pytest.mark.parametrize(
    ("header", "faults"),
    [
        ("", [(0, "")]),
        ("line;profile;status\n", [(1, "")]),
        (HEADER.replace("kind,", ""), [(1, "kind")]),
        (HEADER.replace("kind,", "kind,sort,"), [(1, "sort")]),
        (HEADER.replace("kind,", "kind,kind,"), [(1, "kind")]),
    ],
)
def test_read_lines_unusable_header_is_named(header: str, faults: list[tuple[int, str]]) -> None:
    assert faults_of(header=header) == faults


@pytest.mark.parametrize(
    "secret", ["s3cret-Pass", "ha1:0123456789abcdef", "ha1:SHA-9:" + "c" * 64, "ha1:" + "d" * 32 + " s3cret-Pass"]
)
def test_read_lines_messages_never_hold_a_password(secret: str) -> None:
    with pytest.raises(PolicyError) as raised:
        lines_of(GOOD.replace("pw", secret).replace("02051988111", "bad"), GOOD.replace("pw", "other-" + secret))
    for word in secret.split():
        assert word not in str(raised.value)
        assert word.removeprefix("ha1:") not in str(raised.value)
    assert "Pass" not in repr(lines_of(GOOD.replace("pw", "s3cret-Pass")))


def test_read_lines_many_faults_are_counted() -> None:
    with pytest.raises(PolicyError) as raised:
        lines_of(*(f"L{n},nope,,,town,02051,a{n},,pw,02051{n + 20000}" for n in range(1500)))
    assert len(raised.value.faults) == 1001
    assert raised.value.faults[-1].reason == "500 more faults"


def test_read_lines_ten_thousand_accounts_in_seconds() -> None:
    rows = [f"L{n},velbert,active,,town,02051,u{n},single,secret{n},02051{n + 200000}" for n in range(10_000)]
    started = time.thread_time()
    found = lines_of(*rows)
    assert len(found.accounts) == len(found.lines) == 10_000
    assert time.thread_time() - started < 30, "what grows by the square takes minutes"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+492051988111", "+492051988111"),
        ("0049 2051 988111", "+492051988111"),
        ("+49 (0) 2051 / 988111", ""),
        ("032123456789", "+4932123456789"),
        ("015228817386", "+4915228817386"),
        ("+492051988*", "+492051988*"),
        ("+492051 988 *", "+492051988*"),
        ("112", ""),
        ("118", ""),
    ],
)
def test_assigned_number_is_normalised(text: str, number: str) -> None:
    found, fault = assigned_number(text)
    assert (found, bool(fault)) == (number, not number)


PSAP = "location,service,priority,uri,name\n"


def test_read_psap_routes() -> None:
    found = read_psap(PSAP + "town,112,10,sip:112@psap.example:5060,Centre\n*,110,0,sips:110@[2001:db8::1];lr,\n", file="p")
    assert found == (
        PsapRoute("town", "112", 10, "sip:112@psap.example:5060", "Centre"),
        PsapRoute("*", "110", 0, "sips:110@[2001:db8::1];lr"),
    )


def test_read_psap_faults_are_all_reported() -> None:
    text = (
        PSAP
        + ",113,-1,sip:psap,x\ntown,112,1,tel:112,x\ntown,112,1,sip:a@b c,x\ntown,112,1,sip:112@a,x\ntown,112,2,sip:112@a,x\n"
    )
    with pytest.raises(PolicyError) as raised:
        read_psap(text, file="p")
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [
        (2, "location"), (2, "service"), (2, "priority"), (2, "uri"), (3, "uri"), (4, "uri"), (6, "uri"),
    ]  # fmt: skip


BLOCKS = "id,prefix,reason,profile,line,owner\n"  # of the first version


def test_read_blocks_rules_have_canonical_prefixes() -> None:
    found = read_blocks(
        BLOCKS + 'r1,0043 900,"fraud, abroad",,,noc\nr2,0137,on request,velbert,L1,\n', file="b", profiles=PROFILES
    )
    assert found == (
        BlockRule("r1", "+43900", "fraud, abroad", owner="noc"),
        BlockRule("r2", "+49137", "on request", "velbert", "L1"),
    )
    assert read_blocks("id,prefix,reason\nr1,118,x\n", file="b", profiles=PROFILES)[0].value == "service:118"


def test_read_blocks_faults_are_all_reported() -> None:
    rows = [
        "r 1,0900,x,,,",
        "r2,,x,,,",
        "r3,112,x,,,",
        "r4,11,x,,,",
        "r5,service:1,x,,,",
        "r6,0900,,,,",
        "r7,0900,x,nope,,",
        "r8,0900,x,,L 1,",
        "r8,0900,x,,,",
        "r9,900,x,,,",
    ]
    with pytest.raises(PolicyError) as raised:
        read_blocks(BLOCKS + "\n".join(rows), file="b", profiles=PROFILES)
    columns = ["id", "prefix", "prefix", "prefix", "prefix", "reason", "profile", "line", "id", "prefix"]
    assert [(fault.row, fault.column) for fault in raised.value.faults] == list(enumerate(columns, 2))


def test_limits_of_accounts_and_soft_limits_are_read_from_their_first_rows() -> None:
    header = HEADER.rstrip("\n") + ",soft_channels,account_channels\n"
    found = lines_of(
        "L1,velbert,active,5,town,02051,a1,,pw,02051988111,4,2",
        "L1,,,,,,a2,,pw,02051988112,,",
        header=header,
    )
    assert [line.soft_channels for line in found.lines] == [4]
    assert [(account.user, account.channels) for account in found.accounts] == [("a1", 2), ("a2", None)]


@pytest.mark.parametrize(
    ("soft", "own", "column"), [("-1", "", "soft_channels"), ("x", "", "soft_channels"), ("", "0", "account_channels")]
)
def test_limits_that_are_no_number_are_faults_by_their_column(soft: str, own: str, column: str) -> None:
    header = HEADER.rstrip("\n") + ",soft_channels,account_channels\n"
    with pytest.raises(PolicyError) as caught:
        lines_of(f"L1,velbert,active,5,town,02051,a1,,pw,02051988111,{soft},{own}", header=header)
    assert [(fault.row, fault.column) for fault in caught.value.faults] == [(2, column)]


def test_account_limit_that_differs_in_a_further_row_is_a_fault() -> None:
    header = HEADER.rstrip("\n") + ",account_channels\n"
    with pytest.raises(PolicyError) as caught:
        lines_of(
            "L1,velbert,active,5,town,02051,a1,trunk,pw,02051988111,2",
            "L1,,,,,,a1,,,02051988112,3",
            header=header,
        )
    assert [(fault.row, fault.column) for fault in caught.value.faults] == [(3, "account_channels")]
