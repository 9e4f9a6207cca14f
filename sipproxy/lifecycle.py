"""How a node comes back and how it leaves: calls of before a crash are taken up again, SIGTERM lets the live ones finish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cdr import pruning
from cdr.journal import JournalError
from cdr.wire import cancel_all
from sipproxy.config_file import split_address
from sipproxy.engine.recover import slots_of
from sipproxy.engine.targets import route_hops
from sipproxy.net.addresses import is_here
from sipproxy.sip.transaction import State
from sipproxy.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cdr.journal import Journal
    from cdr.recovery import Recovered
    from sipproxy.engine.core import Engine
    from sipproxy.neighbours import Neighbours
    from sipproxy.net.transports import Transports
    from sipproxy.process import Stop
    from sipproxy.shell import Shell
    from sipproxy.store.secret import SharedSecret
    from sipproxy.store.slots import Slots
    from sipproxy.systemd import Notifier

__all__ = [
    "an_address_is_here",
    "boot_id",
    "cancel_all",
    "drain",
    "is_healthy",
    "learn",
    "leave",
    "resume",
    "run_look_ahead",
    "run_pruning",
    "settle",
]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): drawn anew at each boot
TIME_NAMESPACE = "/proc/self/ns/time"  # time_namespaces(7): another one may count the monotonic clock otherwise
ENDED_LATELY = 10_000  # ended calls whose slots are released again at start; at 100 calls a second those of one lease
SETTLE_S = 1.0  # for the store to take the slots of live calls before new calls come
POLL_S = 0.05
LEFT_S = 0.5  # between two looks at what a worker that leaves has left
LOOK_S = 0.5  # between two looks for the first address
WAIT_S = 30.0  # that the service manager is asked to wait for more, at each of them
LAST_WORDS_S = 5.0  # for the answers to the last BYEs
LOOK_AHEAD_S = 2.0  # between two looks at the routes' names; below transports.AHEAD_S
PRUNE_S = 600.0  # between two looks for records that the journal has kept long enough
OVERDUE_S = 5.0  # a deadline that is missed by so much: the engine does not run
PENDING = (State.TRYING, State.CALLING, State.PROCEEDING)
UNASKED = (b"OPTIONS", b"REGISTER")  # of our own: nobody waits for their answers


async def an_address_is_here(listens: Sequence[str], stop: Stop, notifier: Notifier) -> bool:
    """Wait until one address to listen on is on this machine, which is said once; False when the node is to end before that.

    Further ones may come later. Raises ValueError for what is no address.
    """
    hosts = [split_address(listen)[0] for listen in listens]
    said = False
    while not any(map(is_here, hosts)):
        if not said:
            said = True
            structlog.get_logger("node").warning("waiting_for_an_address", listen=list(listens))
        if stop.wanted.is_set():
            return False
        notifier.tell(f"EXTEND_TIMEOUT_USEC={round(1e6 * WAIT_S)}", status="waiting for an address to listen on")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await stop.wanted.wait()
    return True


def boot_id() -> str:
    """A name of this run of the machine's monotonic clock, "" where there is none to be had."""
    try:
        return BOOT_ID.read_text().strip() + ":" + os.readlink(TIME_NAMESPACE)  # noqa: PTH115  not a path
    except OSError:
        return ""


async def learn(secret: SharedSecret, neighbours: Neighbours) -> bool:
    """Agree with the other nodes on the secret, and learn the bindings; False while the store tells nothing."""
    try:
        await secret.step()
        await neighbours.follower.step()
    except StoreError as error:
        structlog.get_logger("node").warning("bindings_not_loaded", error=str(error))  # until the store is back
        return False
    return True


def resume(shell: Shell, journal: Journal, found: Recovered, slots: Slots) -> None:
    """Take up the calls that the journal has no end of, and set the slots right: before the first message.

    Calls that ended just before the node died may have left a slot that nobody gave back any more.
    """
    routes, lapsed_ms = shell.engine.desk.settings.trunks, time.time_ns() // 1_000_000 - shell.lease_ms
    for record in journal.records_from(max(1, journal.last_seq + 1 - ENDED_LATELY)):
        # Who ended while he waited for his slot knew of none and may have got it; help counts on a route without asking.
        if (record.slots_used is not None or record.verdict != "deny") and record.end_at_ms > lapsed_ms:
            for slot in slots_of(record, routes):
                slots.release(slot)
    shell.recover(found.unfinished, found.ended)
    shell.refresh_leases()
    live = shell.engine.calls.live
    if found.unfinished:
        log = structlog.get_logger("node")
        log.warning("calls_after_restart", resumed=live, cut=len(found.unfinished) - live)


async def settle(slots: Slots) -> None:
    """Wait until the store has the slots of the calls that were taken up, for a second at most."""
    until = time.monotonic() + SETTLE_S
    while slots.owed and time.monotonic() < until:  # noqa: ASYNC110  once, at start
        await asyncio.sleep(POLL_S / 10)


async def drain(engine: Engine, stop: Stop, bound_s: float, tell: Callable[[str], None] | None = None) -> None:
    """Take no new calls but emergencies, and return when the live ones have ended, at the bound, or when it is enough.

    A worker tells whether it has "drained" or is "busy" again, and stays until `stop` says that it is enough.
    """
    engine.close("draining")
    until, words_until, was_over = time.monotonic() + bound_s, time.monotonic() + LAST_WORDS_S, False
    while (now := time.monotonic()) < until and not stop.at_once.is_set():
        if engine.calls.live:
            words_until = now + LAST_WORDS_S
        is_over = not engine.calls.live and (now >= words_until or not _is_waiting(engine))
        if is_over and tell is None:
            return
        if tell is not None and is_over != was_over:
            tell("drained" if is_over else "busy")
        was_over = is_over
        await _wait(stop.at_once)


async def _wait(event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(POLL_S):
            await event.wait()


def _is_waiting(engine: Engine) -> bool:
    """Whether somebody still waits for the answer to a request that we forwarded."""
    clients = engine.desk.transactions.clients.values()
    return any(client.machine.state in PENDING and client.method not in UNASKED for client in clients)


async def run_look_ahead(engine: Engine, transports: Transports) -> None:
    """Keep the names of trunk and PSAP routes looked up, until cancelled: no call, least of all the first 112, waits."""
    while True:
        await transports.look_ahead(route_hops(engine.desk))
        await asyncio.sleep(LOOK_AHEAD_S)


async def run_pruning(journal: Journal, keep_ms: int, *, every_s: float = PRUNE_S) -> None:
    """Have the journal let go of confirmed records of calls that ended `keep_ms` ago, so that it happens without a command."""
    while True:
        with contextlib.suppress(JournalError):  # Counted by the journal; the next time does it.
            await pruning.prune(journal, time.time_ns() // 1_000_000 - keep_ms)
        await asyncio.sleep(every_s)


def is_healthy(engine: Engine) -> bool:
    """Whether the engine meets its deadlines. That this is asked at all says that the event loop runs."""
    at = engine.next_at
    return at is None or time.monotonic() - at < OVERDUE_S


async def leave(engine: Engine, journal: Journal, stop: Stop) -> None:
    """Take no new call, and end the process once no call is live and every record is confirmed."""
    engine.close("leaving")
    while engine.calls.live or journal.last_seq > journal.confirmed_seq:  # noqa: ASYNC110  it may be hours
        await asyncio.sleep(LEFT_S)
    stop.terminate()
