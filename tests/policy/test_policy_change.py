"""Changes of the policy data: who may take what, and what is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import codec
from policy.build import snapshot_of
from policy.change import Change, after_plan, empty_snapshot, plan
from policy.codec import Owner
from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, PsapRoute, Snapshot
from policy.table import PolicyError


def line(key: str, *accounts: str) -> Line:
    return Line(key, "velbert", LineStatus.ACTIVE, None, "town", "02051", accounts)


def account(user: str, owner: str, *numbers: str) -> Account:
    return Account(user, owner, AccountKind.TRUNK, {"MD5": "5ec2e7" * 5 + "00"}, numbers)


KEPT = snapshot_of(
    3,
    [line("L1", "a1", "a2"), line("L2", "b1")],
    [account("a1", "L1", "+491", "+492"), account("a2", "L1", "+493"), account("b1", "L2", "+494")],
    {},
    [PsapRoute("town", "112", 1, "sip:112@a")],
    [BlockRule("r", "+43", "x")],
)


def written(change: Change, kept: Snapshot = KEPT) -> dict[tuple[str, str], object]:
    decode = {
        "lines": codec.decode_line,
        "accounts": codec.decode_account,
        "numbers": codec.decode_owner,
        "blocks": codec.decode_block,
    }
    found: dict[tuple[str, str], object] = {}
    for write in plan(change, kept).writes:
        assert (write.table, write.field) not in found
        value = None if write.value is None else decode.get(write.table, codec.decode_psap)(write.value)
        found[write.table, write.field] = value
    return found


def test_plan_new_line_writes_all_of_it() -> None:
    new = account("c1", "L3", "+495", "+496*")
    assert written(Change(lines=(line("L3", "c1"),), accounts=(new,))) == {
        ("lines", "L3"): line("L3", "c1"),
        ("accounts", "c1"): new,
        ("numbers", "+495"): Owner("c1", "L3"),
        ("numbers", "+496*"): Owner("c1", "L3"),
    }


def test_plan_of_what_is_there_already_is_empty() -> None:
    assert plan(Change(lines=(line("L1", "a1", "a2"),), blocks=KEPT.blocks), KEPT) == ((), ())
    everything = Change(tuple(KEPT.lines.values()), tuple(KEPT.accounts.values()), KEPT.psap["town", "112"], KEPT.blocks)
    assert plan(everything, KEPT) == ((), ())


def test_plan_line_alone_keeps_its_accounts() -> None:
    barred = replace(line("L1", "a1", "a2"), status=LineStatus.BARRED_OUT)
    assert written(Change(lines=(barred,))) == {("lines", "L1"): barred}


def test_plan_account_without_a_password_keeps_the_one_it_has() -> None:
    bare = Account("a1", "L1", AccountKind.TRUNK, {}, ("+491",))
    assert written(Change(accounts=(bare,))) == {
        ("accounts", "a1"): account("a1", "L1", "+491"),
        ("numbers", "+492"): None,
    }
    new = Change(lines=(line("L3", "c1"),), accounts=(Account("c1", "L3", AccountKind.SINGLE, {}, ("+499",)),))
    with pytest.raises(PolicyError, match="account c1: password: no password"):
        plan(new, KEPT)
    assert plan(new, KEPT, secrets=False).items


def test_plan_line_that_stays_barred_keeps_since_when() -> None:
    kept = snapshot_of(1, [replace(line("L1"), status=LineStatus.BARRED_OUT, barred_since_ms=5)], [], {}, [], [])
    found = written(Change(lines=(replace(line("L1"), status=LineStatus.BARRED_FULL),)), kept)
    assert found["lines", "L1"] == replace(line("L1"), status=LineStatus.BARRED_FULL, barred_since_ms=5)
    assert written(Change(lines=(line("L1"),)), kept)["lines", "L1"] == line("L1")


def test_plan_line_that_names_an_account_no_longer_drops_it_with_its_numbers() -> None:
    found = written(Change(lines=(line("L1", "a1"),)))
    assert found == {("lines", "L1"): line("L1", "a1"), ("accounts", "a2"): None, ("numbers", "+493"): None}


def test_plan_account_with_other_numbers_gives_the_old_ones_up() -> None:
    found = written(Change(accounts=(account("a1", "L1", "+492", "+497"),)))
    assert found["numbers", "+491"] is None
    assert found["numbers", "+497"] == Owner("a1", "L1")
    assert ("numbers", "+492") not in found  # stays where it is


def test_plan_removed_line_takes_everything_with_it() -> None:
    found = written(Change(remove_lines=("L1", "unknown")))
    assert set(found) == {("lines", "L1"), ("accounts", "a1"), ("accounts", "a2")} | {
        ("numbers", number) for number in ("+491", "+492", "+493")
    }
    assert set(found.values()) == {None}


def test_plan_number_may_move_within_one_change() -> None:
    found = written(Change(lines=(line("L1", "a1"), line("L2", "b1")), accounts=(account("b1", "L2", "+494", "+493"),)))
    assert found["numbers", "+493"] == Owner("b1", "L2")
    assert found["accounts", "a2"] is None
    found = written(Change(lines=(line("L3", "a1"),), accounts=(account("a1", "L3", "+491"),), remove_lines=("L1",)))
    assert found["accounts", "a1"] == account("a1", "L3", "+491")
    assert found["numbers", "+491"] == Owner("a1", "L3")


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (Change(lines=(line("L3", "c1"),), accounts=(account("c1", "L3", "+491"),)), ["+491 taken by account a1 of line L1"]),
        (Change(lines=(line("L3", "b1"),), accounts=(account("b1", "L3", "+499"),)), ["taken by line L2"]),
        (Change(lines=(line("L3", "c1"),)), ["c1 is not an account of this line"]),
        (Change(lines=(line("L1", "a1", "b1"),)), ["b1 is not an account of this line"]),
        (Change(accounts=(account("c1", "L1", "+499"),)), ["line L1 does not name this account"]),
        (Change(accounts=(account("c1", "L9", "+499"),)), ["line L9 does not name this account"]),
        (
            Change(lines=(line("L3", "c1", "c2"),), accounts=(account("c1", "L3", "+499"), account("c2", "L3", "+499"))),
            ["+499 is assigned twice"],
        ),
        (
            Change(lines=(line("L3", "c1"),), accounts=(account("c1", "L3", "+491", "+494"),)),
            ["+491 taken by account a1 of line L1", "+494 taken by account b1 of line L2"],
        ),
    ],
)
def test_plan_refuses_what_belongs_to_another_line(change: Change, reasons: list[str]) -> None:
    with pytest.raises(PolicyError) as raised:
        plan(change, KEPT)
    assert [fault.reason for fault in raised.value.faults] == reasons


def test_plan_blocks_and_routes() -> None:
    first, second = PsapRoute("town", "112", 1, "sip:112@b"), PsapRoute("town", "112", 2, "sip:112@c")
    rule = BlockRule("s", "+44", "x")
    found = written(Change(psap=(first, second), blocks=(rule,), remove_blocks=("r",)))
    assert found == {
        ("psap", "112:town"): (first, second),
        ("blocks", "s"): rule,
        ("blocks", "r"): None,
    }


def test_plan_routes_of_another_day_stay() -> None:
    later = PsapRoute("town", "112", 1, "sip:112@b", valid_from_ms=10**12)
    kept = after_plan(KEPT, plan(Change(psap=(later,)), KEPT))
    assert kept.psap["town", "112"] == (PsapRoute("town", "112", 1, "sip:112@a"), later)
    found = written(Change(psap=(PsapRoute("town", "112", 5, "sip:112@c"),)), kept)
    assert found == {("psap", "112:town"): (later, PsapRoute("town", "112", 5, "sip:112@c"))}
    assert written(Change(remove_psap=(("town", "112"),)), kept) == {("psap", "112:town"): None}
    assert written(Change(remove_psap=(("town", "112"),), psap=(later,)), kept) == {("psap", "112:town"): (later,)}


def test_after_plan_is_what_the_writes_make() -> None:
    change = Change(
        lines=(line("L1", "a1"), line("L3", "c1")),
        accounts=(account("c1", "L3", "+493"),),
        remove_lines=("L2",),
        remove_blocks=("r",),
        blocks=(BlockRule("s", "+44", "x"),),
    )
    found = after_plan(KEPT, plan(change, KEPT))
    assert (sorted(found.lines), sorted(found.accounts)) == (["L1", "L3"], ["a1", "c1"])
    assert dict(found.numbers) == {"+491": "a1", "+492": "a1", "+493": "c1"}
    assert [rule.id for rule in found.blocks] == ["s"]
    assert after_plan(empty_snapshot(), plan(Change(), empty_snapshot())) == empty_snapshot()


@given(
    st.builds(
        Account,
        user=st.text(max_size=5),
        line=st.text(max_size=5),
        kind=st.sampled_from(list(AccountKind)),
        ha1=st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
        numbers=st.lists(st.text(max_size=5)).map(tuple),
    )
)
def test_codec_account_round_trip(value: Account) -> None:
    assert codec.decode_account(codec.encode(value)) == value


@given(
    st.builds(
        Line, id=st.text(max_size=5), status=st.sampled_from(list(LineStatus)), channels=st.one_of(st.none(), st.integers(0, 9))
    )
)
def test_codec_line_round_trip(value: Line) -> None:
    assert codec.decode_line(codec.encode(value)) == value


def test_codec_skips_fields_of_a_newer_version() -> None:
    import msgspec

    newer = msgspec.msgpack.encode({"id": "r", "value": "+43", "reason": "x", "weight": 5})
    assert codec.decode_block(newer) == BlockRule("r", "+43", "x")
    assert codec.decode_psap(codec.encode_psap((PsapRoute("t", "112", 1, "sip:a@b"),))) == (
        PsapRoute("t", "112", 1, "sip:a@b"),
    )
