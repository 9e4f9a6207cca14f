"""Following at one worker: what passed before it was known whose it is, and calls that another worker found."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cdr.facts import Admit
from loadtest.billing import make_record
from sipproxy import watching
from sipproxy.net.passed import Passed
from sipproxy.watching import Watching
from tests.engine.desk import Desk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from cdr.facts import Fact

WAIT_S = 30.0
INVITE = (
    b"INVITE sip:a@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bKa\r\nFrom: <sip:stranger@192.0.2.7>;tag=a\r\n"
    b"To: <sip:a@192.0.2.1>\r\nCall-ID: %b\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
)


class Node:
    """A worker whose engine knows the line L1, and a call of it that is live."""

    def __init__(self) -> None:
        self.messages: list[Callable[[Passed], None]] = []
        self.facts: list[Callable[[Fact], None]] = []
        line = SimpleNamespace(id="L1", accounts=(), area_code="06032")
        snapshot = SimpleNamespace(lines={"L1": line}, accounts={}, account_of=lambda _: None)
        live = SimpleNamespace(record=SimpleNamespace(call_id="live"))
        engine: Any = SimpleNamespace(desk=SimpleNamespace(snapshot=snapshot), calls=SimpleNamespace(by_id={"id-1": live}))
        log: Any = SimpleNamespace(warning=lambda *_, **__: None)
        self.watching = Watching(engine, log, self.messages, self.facts)
        self.told_others: list[tuple[int, str]] = []
        self.watching.tell_others = lambda ident, call_id: self.told_others.append((ident, call_id))
        self._at_ns = 2**62

    @contextlib.asynccontextmanager
    async def watch(self, target: str = "L1", **request: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        asked = {"target": target, "minutes": 1, "why": "x", "who": "y", **request}
        async with contextlib.aclosing(self.watching.watch(asked)) as events, asyncio.timeout(WAIT_S):  # type: ignore[type-var]
            assert (await anext(events))["kind"] == "begins"
            yield events

    def passes(self, call_id: str, more: bytes = b"") -> None:
        self._at_ns += 1
        data = INVITE % call_id.encode() + more
        for message in self.messages:
            message(Passed(self._at_ns, False, "UDP", ("192.0.2.1", 5060), ("192.0.2.7", 5060), data))

    def admits(self, call_id: str) -> None:
        record = msgspec.structs.replace(make_record(1), line="L1", call_id=call_id)
        for fact in self.facts:
            fact(Admit(record, 0))


async def told(events: AsyncIterator[dict[str, Any]], count: int) -> list[tuple[str, str, str]]:
    found = [await anext(events) for _ in range(count)]
    return [(event["kind"], event["call_id"], event.get("data", "").rpartition("\r\n")[2]) for event in found]


async def test_request_is_told_when_it_turns_out_whose_call_it_is() -> None:
    node = Node()
    async with node.watch(ident=3) as events:
        node.passes("another")
        node.passes("mine")
        node.admits("mine")
        node.passes("mine", b"again")
        assert await told(events, 3) == [("message", "mine", ""), ("admitted", "mine", ""), ("message", "mine", "again")]
    assert node.told_others == [(3, "mine")]
    assert (node.messages, node.facts) == ([], [])


async def test_call_that_another_worker_found_is_followed_with_what_passed_here() -> None:
    node = Node()
    async with node.watch(ident=3) as events:
        node.passes("mine")
        node.watching.followed(4, "mine")  # another operator's
        node.watching.followed(3, "mine")
        node.watching.followed(3, "mine")
        node.passes("mine", b"again")
        assert await told(events, 2) == [("message", "mine", ""), ("message", "mine", "again")]
    assert node.told_others == []  # who found it has told all


async def test_call_that_another_worker_found_before_this_one_was_asked_is_followed() -> None:
    node = Node()
    node.watching.followed(3, "mine")
    async with node.watch(ident=3) as events:
        node.passes("mine")
        assert await told(events, 1) == [("message", "mine", "")]


async def test_call_of_another_worker_is_followed_by_its_call_ids() -> None:
    node = Node()
    async with node.watch("id-9", ident=3, calls=["theirs"]) as events:
        node.passes("live")
        node.passes("theirs")
        assert await told(events, 1) == [("message", "theirs", "")]
    async with node.watch("id-1", ident=4, calls=[]) as events:
        node.passes("live")
        assert await told(events, 1) == [("message", "live", "")]


async def test_messages_of_before_a_watch_are_not_told_by_it_nor_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "MAX_RECENT", 3)
    node = Node()
    async with node.watch(ident=1):
        node._at_ns = 0
        node.passes("mine", b"old")
        node._at_ns = 2**62
        async with node.watch(ident=2) as events:
            node.passes("mine", b"new")
            node.watching.followed(2, "mine")
            assert await told(events, 1) == [("message", "mine", "new")]
            node.passes("yours", b"forgotten")
            for number in range(3):
                node.passes("yours", b"%d" % number)
            node.watching.followed(2, "yours")
            assert await told(events, 3) == [("message", "yours", str(number)) for number in range(3)]


async def test_call_with_a_very_long_call_id_is_followed_by_as_much_of_it_as_its_record_has() -> None:
    desk = Desk()
    watching = Watching(desk.engine, structlog.get_logger("test"), [], [])
    events = watching.watch({"target": "L1", "minutes": 1, "why": "a fault", "who": "operator"})
    assert (await anext(events))["kind"] == "begins"
    call_id = b"c" * 50_000
    invite = desk.request(b"INVITE", b"sip:03023125001@sip.test", call_id=call_id)
    of_others = desk.request(b"INFO", b"sip:carol@sip.test", user=b"dave", call_id=call_id)
    for data in (invite, of_others, of_others.replace(call_id, b"another")):
        watching.passed(Passed(0, False, "UDP", ("192.0.2.1", 5060), ("203.0.113.1", 5060), data))
    assert [(await anext(events))["data"].partition(" ")[0] for _ in range(2)] == ["INVITE", "INFO"]
    [watch] = watching._watches
    assert watch.events.empty()
    assert [len(known) for known in watch._calls] == [512]
    await events.aclose()  # type: ignore[attr-defined]
