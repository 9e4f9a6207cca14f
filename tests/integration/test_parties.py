"""The simulated parties by themselves: what the tests of the node rest on (RFC 3261 §13, §15, §17)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cdr.facts import Record
from loadtest.agents import Answering, Party, Psap, Trunk, next_call, open_all
from loadtest.node import write_toml
from loadtest.reconcile import compare
from loadtest.truth import CallTruth, Ledger
from loadtest.ua import CallError


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[tuple[Trunk, Psap]]:
    ledger = Ledger()
    trunk, psap = Trunk("trunk", ledger), Psap("psap", ledger)
    await open_all([trunk, psap])
    yield trunk, psap
    trunk.close()
    psap.close()


def at(party: Party) -> tuple[str, int]:
    return (party.host, party.port)


async def test_call_answered_and_hung_up_leaves_the_same_truth_on_both_sides(pair: tuple[Trunk, Psap]) -> None:
    trunk, psap = pair
    call = await trunk.call("112", at(psap))
    await call.answered()
    other = await next_call(psap)
    await asyncio.wait_for(other.acked.wait(), 20)
    await asyncio.sleep(0.1)
    assert await call.hang_up() == 200
    await other.wait_ended()
    for truth in (call.truth, other.truth):
        assert (truth.status, truth.released_by) == (200, "caller")
        assert truth.talk_ms is not None
        assert truth.talk_ms >= 90
    assert call.truth.tags == other.truth.tags[::-1]


async def test_call_rejected_raises_its_status(pair: tuple[Trunk, Psap]) -> None:
    trunk, psap = pair
    psap.answering = Answering(status=486)
    call = await trunk.call("112", at(psap))
    with pytest.raises(CallError) as caught:
        await call.answered()
    assert caught.value.status == 486
    assert call.truth.answered_at is None


async def test_call_cancelled_while_ringing_ends_with_487(pair: tuple[Trunk, Psap]) -> None:
    trunk, psap = pair
    psap.answering = Answering(status=None)
    call = await trunk.call("112", at(psap))
    other = await next_call(psap)
    call.cancel()
    assert await call.final() == 487
    assert other.truth.status == 487
    assert (call.truth.released_by, other.truth.released_by) == ("caller", "caller")


async def test_invite_lost_is_sent_again_and_answered_once(pair: tuple[Trunk, Psap]) -> None:
    trunk, psap = pair
    psap.silent = True
    call = await trunk.call("112", at(psap))
    await asyncio.sleep(0.1)
    psap.silent = False
    await call.answered()
    assert psap.incoming.qsize() == 1
    assert "repeats" in [event.what for event in trunk.ledger.of(call.call_id)]


async def test_ack_lost_makes_the_answer_repeat_and_the_ack_again(pair: tuple[Trunk, Psap]) -> None:
    trunk, psap = pair
    call = await trunk.call("112", at(psap))
    psap.received.clear()
    other = await next_call(psap)
    psap.silent = True  # the ACK is not heard
    await call.answered()
    assert not other.acked.is_set()
    psap.silent = False
    await asyncio.wait_for(other.acked.wait(), 20)


def test_toml_of_nested_values_reads_back() -> None:
    import tomllib

    tables = {"a": {"text": 'q"\\', "n": 3, "yes": True, "many": ["x", 1]}, "b": [{"n": 1}, {"n": 2}]}
    assert tomllib.loads(write_toml(tables)) == tables


def truth_of(call_id: str, **changes: object) -> CallTruth:
    values = {"status": 200, "answered_at": 1.0, "ended_at": 3.0, "released_by": "caller", **changes}
    return CallTruth("r", "caller", call_id, "030", 0.5, 1000, **values)  # type: ignore[arg-type]


def record_of(call_id: str, seq: int, **changes: object) -> Record:
    values = {"status": 200, "answer_at_ms": 1, "billable_ms": 2000, "released_by": "caller", **changes}
    return Record(id=str(seq), node="n", seq=seq, direction="outgoing", call_id=call_id, **values)  # type: ignore[arg-type]


def test_comparison_of_equal_sets_is_ok() -> None:
    assert compare({"a": truth_of("a"), "b": truth_of("b")}, [record_of("a", 1), record_of("b", 2)]).ok


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([record_of("a", 1)], "missing"),
        ([record_of("a", 1), record_of("b", 2), record_of("c", 3)], "unexpected"),
        ([record_of("a", 1), record_of("b", 2), record_of("b", 3)], "repeated"),
        ([record_of("a", 1), record_of("b", 3)], "gaps"),
        ([record_of("a", 1), record_of("b", 2, status=486)], "different"),
        ([record_of("a", 1), record_of("b", 2, billable_ms=9000)], "different"),
        ([record_of("a", 1), record_of("b", 2, released_by="callee")], "different"),
    ],
)
def test_comparison_names_each_kind_of_fault(records: list[Record], fault: str) -> None:
    result = compare({"a": truth_of("a"), "b": truth_of("b")}, records)
    assert not result.ok
    assert getattr(result, fault)
