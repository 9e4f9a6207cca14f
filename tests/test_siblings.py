"""What one worker tells another of its bindings: in order, and before the messages that may depend on them. And that a call for
help which another one has waits for none that does not say so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sipproxy.engine.actions import RemoveBinding, SaveBinding
from sipproxy.engine.structs import Binding
from sipproxy.net.handover import pair
from sipproxy.orders import Spec, State
from sipproxy.siblings import Siblings
from sipproxy.sip.flow import Flow

if TYPE_CHECKING:
    from collections.abc import Callable

FLOW = Flow("UDP", 0, "192.0.2.7", 5060)
WAIT_S = 30.0


class Worker:
    """A worker whose engine only notes what it is told."""

    def __init__(
        self, me: int, inboxes: list[int], outboxes: list[int], link: socket.socket, firsts: dict[int, int] | None = None
    ) -> None:
        """`firsts` are who took calls for help first, instead of the kernel's locks, which are a process's."""
        spec = Spec(me, len(inboxes), ["a", "b", "c"][: len(inboxes)], "", [], [], [], inboxes, outboxes, link.detach(), -1, "")
        self.told: list[tuple[str, ...]] = []
        self.siblings = Siblings(spec, b"k" * 32)
        shell: Any = SimpleNamespace(
            engine=SimpleNamespace(crew=SimpleNamespace()),
            binding_seen=lambda user, binding, *, is_told: self.told.append(("seen", user, binding.key)),
            binding_gone=lambda user, key, at_ms, *, is_told: self.told.append(("gone", user, key)),
            message=lambda data, flow, waited_s, kind=None: self.told.append(("message", data.decode())),
            told=lambda word: None,
        )
        self.siblings.attach(shell, SimpleNamespace())  # type: ignore[arg-type]
        self.siblings.steering.alive = frozenset(range(1, len(inboxes) + 1))
        if firsts is not None:
            self.siblings.steering.first = lambda number: firsts.setdefault(number, me)
        self.siblings.post.start()
        self.siblings.serve()
        self.save = shell.on_binding

    def stand_still(self) -> None:
        """Read nothing any more."""
        asyncio.get_running_loop().remove_reader(self.siblings.post._inbox.fileno())

    def go_on(self) -> None:
        self.siblings.post.start()


@contextlib.asynccontextmanager
async def crew(count: int, firsts: dict[int, int] | None = None) -> AsyncIterator[list[Worker]]:
    boxes = [pair() for _ in range(count)]
    inboxes, outboxes = ([box[end].detach() for box in boxes] for end in (0, 1))
    own = [[os.dup(outbox) for outbox in outboxes] for _ in range(count)]  # as in processes of their own
    supervisors, links = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)), strict=True)
    found = [Worker(me, inboxes, own[me - 1], links[me - 1], firsts) for me in range(1, count + 1)]
    yield found
    for worker, supervisor in zip(found, supervisors, strict=True):
        worker.siblings.close()
        worker.siblings._link.close()
        os.close(own[worker.siblings.me - 1][worker.siblings.me - 1])
        supervisor.close()
    for outbox in outboxes:
        os.close(outbox)


@pytest.fixture
async def workers() -> AsyncIterator[tuple[Worker, Worker]]:
    async with crew(2) as (first, second):
        yield first, second


@pytest.fixture
async def three() -> AsyncIterator[list[Worker]]:
    """Workers that know who was first with a call for help, as from the kernel."""
    async with crew(3, {}) as found:
        yield found


def binding(number: int) -> Binding:
    return Binding(f"key-{number}", "sip:a@192.0.2.7", FLOW, (), "call", number, 0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.001)


async def test_bindings_are_told_in_order(workers: tuple[Worker, Worker]) -> None:
    first, second = workers
    count = 40
    for number in range(count):
        first.save(SaveBinding("alice", binding(number)))
    first.save(RemoveBinding("alice", "key-0", 7))
    await until(lambda: len(second.told) == count + 1)
    assert second.told == [*(("seen", "alice", f"key-{number}") for number in range(count)), ("gone", "alice", "key-0")]
    assert first.told == []


async def test_message_that_is_passed_on_comes_behind_the_bindings_before_it(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call may be to what was just registered, or for help from there."""
    first, second = workers
    monkeypatch.setattr(type(first.siblings.steering), "owner", lambda *_: 2)
    first.save(SaveBinding("alice", binding(1)))
    first.siblings.message(b"INVITE sip:112@sip.example SIP/2.0", FLOW, 0.0)
    await until(lambda: len(second.told) == 2)
    assert second.told == [("seen", "alice", "key-1"), ("message", "INVITE sip:112@sip.example SIP/2.0")]


async def test_worker_that_comes_back_learns_who_is_there_before_it_serves(workers: tuple[Worker, Worker]) -> None:
    """The others may be told of it, and tell it what they took, before it is told of them: it is not alone for that."""
    first, second = workers[0].siblings, workers[1].siblings
    second.steering.alive = frozenset({2})
    taking = asyncio.create_task(second.take_over())
    first._tell_kept(2)
    await until(lambda: 1 in second._heard)
    assert not second._waiting.is_set()
    second._on_state(State([1, 2]))
    await taking
    assert second._waiting.is_set()


def for_help(call_id: str = "a") -> bytes:
    return f"INVITE sip:112@sip.example SIP/2.0\r\nCall-ID: {call_id}\r\n\r\n".encode()


def took(worker: Worker) -> list[str]:
    """The Call-IDs of what came to its engine."""
    return [what[1].partition("Call-ID: ")[2].strip() for what in worker.told if what[0] == "message"]


async def test_copy_of_a_call_for_help_goes_to_who_has_it_and_is_confirmed(three: list[Worker]) -> None:
    first, second, third = three
    first.siblings.message(for_help(), FLOW, 0.0)
    for other in (second, third):  # before they have read the word of it
        other.siblings.message(for_help(), FLOW, 0.0)
        assert len(other.siblings._given) == 1
    await until(lambda: not (second.siblings._given or third.siblings._given))
    assert [took(worker) for worker in three] == [["a"] * 3, [], []]


async def test_workers_that_read_copies_are_told_who_has_the_call(three: list[Worker]) -> None:
    """Also of what is not known as the kernel's: its ACK and BYE without a mark."""
    first, second, third = three
    first.siblings.message(for_help(), FLOW, 0.0)
    await until(lambda: all(len(worker.siblings.steering) == 1 for worker in three))
    bye = b"BYE sip:centre@192.0.2.1 SIP/2.0\r\nTo: <sip:a@b>;tag=1\r\nCall-ID: a\r\n\r\n"
    assert [worker.siblings.steering.owner(bye) for worker in (second, third)] == [1, 1]


async def test_call_for_help_is_taken_by_one_other_when_who_has_it_stands_still(
    three: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design: invariant 1. Those that read copies settle among themselves who does; no copy has to come again."""
    monkeypatch.setattr("sipproxy.siblings.CONFIRM_S", 0.05)
    first, second, third = three
    first.siblings.message(for_help(), FLOW, 0.0)
    first.stand_still()
    for other in (second, third):
        other.siblings.message(for_help(), FLOW, 0.0)
    await until(lambda: len(took(second) + took(third)) == 2)
    assert sorted([took(second), took(third)]) == [[], ["a", "a"]]
    await until(lambda: not (second.siblings._given or third.siblings._given))
    first.go_on()
    first.siblings.message(for_help(), FLOW, 0.0)
    await until(lambda: len(took(second) + took(third) + took(first)) >= 5)
    assert sorted(len(took(worker)) > 0 for worker in (second, third)) == [False, True]


async def test_call_for_help_of_a_worker_that_dies_is_taken_at_once(three: list[Worker]) -> None:
    first, second, third = three
    first.siblings.message(for_help(), FLOW, 0.0)
    first.stand_still()
    for other in (second, third):
        other.siblings.message(for_help(), FLOW, 0.0)
    for other in (second, third):
        other.siblings._on_state(State([2, 3]))
    assert (took(second), third.siblings._given[2].tried) == (["a"], (1, 2))
    await until(lambda: took(second) == ["a", "a"] and not third.siblings._given)


@pytest.mark.parametrize("bound", ["room", "asked"])
async def test_call_for_help_is_taken_at_once_when_who_has_it_has_no_room(
    three: list[Worker], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    first, second, _ = three
    first.siblings.message(for_help(), FLOW, 0.0)
    if bound == "room":
        monkeypatch.setattr(second.siblings.post, "send", lambda worker, data: False)
    else:
        monkeypatch.setattr("sipproxy.siblings.MAX_ASKED", 0)
    second.siblings.message(for_help(), FLOW, 0.0)
    assert (took(second), second.siblings.counters["taken_here"], second.siblings._given) == (["a"], 1, {})


async def test_what_belongs_to_a_call_of_a_worker_without_room_is_lost_and_counted(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = workers
    monkeypatch.setattr(type(first.siblings.steering), "owner", lambda *_: 2)
    monkeypatch.setattr(first.siblings.post, "send", lambda worker, data: False)
    first.siblings.message(b"BYE sip:a@b SIP/2.0\r\nCall-ID: a\r\n\r\n", FLOW, 0.0)
    first.siblings.message(b"INVITE sip:03023125001@b SIP/2.0\r\nCall-ID: b\r\n\r\n", FLOW, 0.0)
    assert (took(first), first.siblings.counters["lost"], first.siblings.counters["taken_here"]) == (["b"], 1, 1)


async def test_worker_that_was_late_itself_takes_no_call_that_was_confirmed(
    three: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipproxy.siblings.CONFIRM_S", 0.0)
    first, second, _ = three
    first.siblings.message(for_help(), FLOW, 0.0)
    second.stand_still()
    second.siblings.message(for_help(), FLOW, 0.0)
    first.siblings.post.read()
    await until(lambda: not second.siblings._given)
    assert (took(first), took(second)) == (["a", "a"], [])
