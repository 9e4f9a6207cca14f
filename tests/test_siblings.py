"""What one worker tells another of its bindings: in order, and before the messages that may depend on them."""

from __future__ import annotations

import asyncio
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

    def __init__(self, me: int, inboxes: list[int], outboxes: list[int], link: socket.socket) -> None:
        spec = Spec(me, 2, ["a", "b"], "", [], [], [], inboxes, outboxes, link.detach(), -1, "")
        self.told: list[tuple[str, ...]] = []
        self.siblings = Siblings(spec, b"k" * 32)
        shell: Any = SimpleNamespace(
            engine=SimpleNamespace(crew=SimpleNamespace()),
            binding_seen=lambda user, binding, *, is_told: self.told.append(("seen", user, binding.key)),
            binding_gone=lambda user, key, at_ms, *, is_told: self.told.append(("gone", user, key)),
            message=lambda data, flow, waited_s: self.told.append(("message", data.decode())),
        )
        self.siblings.attach(shell, SimpleNamespace())  # type: ignore[arg-type]
        self.siblings.steering.alive = frozenset({1, 2})
        self.siblings.post.start()
        self.siblings.serve()
        self.save = shell.on_binding


@pytest.fixture
async def workers() -> AsyncIterator[tuple[Worker, Worker]]:
    boxes = [pair(), pair()]
    inboxes, outboxes = ([box[end].detach() for box in boxes] for end in (0, 1))
    supervisors, links = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)), strict=True)
    first, second = (Worker(me, inboxes, outboxes, links[me - 1]) for me in (1, 2))
    yield first, second
    for worker, supervisor in zip((first, second), supervisors, strict=True):
        worker.siblings.close()
        worker.siblings._link.close()
        supervisor.close()


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
