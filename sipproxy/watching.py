"""Following one line, number or call live: its messages as they pass, and what was decided about its calls; and the copies of
all messages for a collector.

An operator starts a watch with a reason; it ends by itself, at the latest after `MAX_MINUTES`, and both are in the log. Who
follows reads from a bounded queue: what he does not read in time is left out and told. Credentials are blinded.

That a call is followed may be known only once messages of it have passed: when it is decided whose it is, or, in a node of
several workers, when another one has found out. The last messages are kept while somebody watches, and told then. Left out: how
the events of several workers become one row (`gathering`), how it is shown (`commands.following`), and the note of who looked
(`cdr.access`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, NamedTuple

from cdr.facts import Admit, Answer, End
from policy.numbers import classify
from sipproxy.admin.control import ControlError
from sipproxy.config_file import split_address
from sipproxy.engine.draft import MAX_TEXT
from sipproxy.net.hep import HepSender
from sipproxy.net.passed import without_credentials
from sipproxy.sip.errors import ParseError
from sipproxy.sip.message import Request, parse_message
from sipproxy.sip.text import text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import structlog

    from cdr.facts import Fact, Record
    from sipproxy.config import Hep
    from sipproxy.engine.core import Engine
    from sipproxy.metrics import Metrics
    from sipproxy.net.passed import Passed
    from sipproxy.net.transports import Transports

__all__ = ["MAX_MINUTES", "Watching", "copy_to"]

MAX_MINUTES = 240  # TDDDG § 12: no longer than a fault takes to be seen
MAX_WATCHES = 4
MAX_QUEUE = 2000  # events that one watch holds for its reader
MAX_CALLS = 10_000  # Call-IDs that one watch follows
MAX_RECENT = 1000  # messages that are kept while somebody watches: those of a second at 200 calls, more than any word takes
MAX_RECENT_BYTES = 4 * 1024 * 1024
MAX_EARLY = 1000  # Call-IDs that another worker told of watches which do not run here yet
HEARTBEAT_S = 5.0
MAX_REASON = 500
_LOOKED_AT = frozenset({"call_id", "from_", "to", "parsed_uri"})  # of a message that is shown

Row = dict[str, Any]


def copy_to(hep: Hep, transports: Transports, metrics: Metrics) -> HepSender:
    """Send a copy of every message to the configured collector. Raises OSError when there is no way to it."""
    host, port = split_address(hep.address)
    sender = HepSender(host, port, capture_id=hep.capture_id, password=hep.password)
    transports.watchers.append(sender.send)
    metrics.counter("sipproxy_hep", "copies of messages for the collector", lambda: sender.counters, ("what",))
    return sender


class Target(NamedTuple):
    """What is followed: user names and numbers of a line or number, or one call by its SIP Call-ID."""

    line: str
    users: frozenset[str]
    numbers: tuple[str, ...]  # +E.164, ranges end in "*"
    area_code: str
    call_id: str = ""

    def is_user(self, user: bytes | None) -> bool:
        """Whether the user part of a URI names the line, in whatever spelling of its number."""
        if not user or self.call_id:
            return False
        name = text(user)
        if name in self.users:
            return True
        number = classify(user, self.area_code).canonical
        return any(number.startswith(own[:-1]) if own.endswith("*") else number == own for own in self.numbers)


class _Watch:
    """One watch at this worker; `ident` is what it is called at all of them, 0 where there is no other."""

    def __init__(self, target: Target, ident: int) -> None:
        self.target, self.ident = target, ident
        self.since_ns = time.time_ns()
        self.events: asyncio.Queue[Row] = asyncio.Queue(MAX_QUEUE)
        self.left_out = 0
        self._calls: OrderedDict[str, None] = OrderedDict()
        if target.call_id:
            self._calls[target.call_id] = None

    def tell(self, event: Row) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.left_out += 1

    def follows(self, call_id: str) -> bool:
        return call_id in self._calls

    def follow(self, call_id: str) -> None:
        self._calls[call_id] = None
        if len(self._calls) > MAX_CALLS:
            self._calls.popitem(last=False)


class _Recent:
    """The last messages, with their Call-IDs."""

    def __init__(self) -> None:
        self._kept: deque[tuple[str, Passed]] = deque()
        self._bytes = 0

    def add(self, call_id: str, passed: Passed) -> None:
        self._kept.append((call_id, passed))
        self._bytes += len(passed.data)
        while len(self._kept) > MAX_RECENT or self._bytes > MAX_RECENT_BYTES:
            self._bytes -= len(self._kept.popleft()[1].data)

    def of(self, call_id: str) -> list[Passed]:
        return [passed for its, passed in self._kept if its == call_id]

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


class Watching:
    """All watches of a node. To be used from the event loop's thread; costs nothing while there is none."""

    def __init__(
        self,
        engine: Engine,
        log: structlog.stdlib.BoundLogger,
        messages: list[Callable[[Passed], None]],
        facts: list[Callable[[Fact], None]],
    ) -> None:
        """`messages` and `facts` are who else is told them: we join while somebody watches."""
        self._engine = engine
        self._messages, self._facts = messages, facts
        self._log = log
        self._watches: list[_Watch] = []
        self._recent = _Recent()
        self._early: OrderedDict[tuple[int, str], None] = OrderedDict()
        # Tells the other workers that a watch follows a call.
        self.tell_others: Callable[[int, str], None] = lambda ident, call_id: None  # noqa: ARG005

    def passed(self, passed: Passed) -> None:
        """A message passed a listener."""
        try:
            message = parse_message(passed.data)
            if not _LOOKED_AT.isdisjoint(message.faults):
                return
            call_id = text(message.call_id)[:MAX_TEXT]  # as records have it
            users = [message.from_.uri.user, message.to.uri.user]
            if isinstance(message, Request):
                users.append(message.parsed_uri.user)
        except ParseError:
            return
        for watch in self._watches:
            if not watch.follows(call_id):
                if not any(watch.target.is_user(user) for user in users):
                    continue
                self._follow(watch, call_id)
            watch.tell(_row(passed, call_id))
        self._recent.add(call_id, passed)

    def _follow(self, watch: _Watch, call_id: str) -> None:
        """A watch follows another call from now on, and what has passed of it."""
        self._look_back(watch, call_id)
        if watch.ident:
            self.tell_others(watch.ident, call_id)

    def _look_back(self, watch: _Watch, call_id: str) -> None:
        watch.follow(call_id)
        for passed in self._recent.of(call_id):
            if passed.at_ns >= watch.since_ns:
                watch.tell(_row(passed, call_id))

    def followed(self, ident: int, call_id: str) -> None:
        """Another worker's part of a watch follows a call."""
        watch = next((watch for watch in self._watches if watch.ident == ident), None)
        if watch is None:  # which begins there before it does here
            self._early[ident, call_id] = None
            if len(self._early) > MAX_EARLY:
                self._early.popitem(last=False)
        elif not watch.follows(call_id):
            self._look_back(watch, call_id)

    def fact(self, fact: Fact) -> None:
        """A fact about a call was journalled: what was decided, that it was answered, how it ended."""
        if isinstance(fact, (Admit, End)):
            self._tell("admitted" if isinstance(fact, Admit) else "ended", fact.record)
        elif isinstance(fact, Answer) and (call := self._engine.calls.by_id.get(fact.id)) is not None:
            self._tell("answered", call.record)

    def _tell(self, kind: str, record: Record) -> None:
        for watch in self._watches:
            line = watch.target.line
            if not watch.follows(record.call_id):
                if not line or line not in (record.line, record.callee_line):
                    continue
                self._follow(watch, record.call_id)
            event: Row = {
                "kind": kind,
                "at_ns": time.time_ns(),
                "call": record.id,
                "call_id": record.call_id,
                "direction": record.direction,
                "line": record.line,
                "canonical": record.canonical,
                "verdict": record.verdict,
                "rule": record.rule,
                "slots_used": record.slots_used,
                "slots_limit": record.slots_limit,
                "route": record.trunk or record.psap,
            }
            if kind == "ended":
                event |= {"status": record.status, "cause": record.cause, "reason": record.end_reason}
                event |= {"released_by": record.released_by, "duration_ms": record.duration_ms}
            watch.tell(event)

    async def watch(self, request: Row) -> AsyncIterator[Row]:
        """Events of `request["target"]` for `request["minutes"]`, a heartbeat where there are none. Raises ControlError."""
        minutes, why, who = request.get("minutes"), str(request.get("why", ""))[:MAX_REASON], str(request.get("who", ""))[:200]
        if not isinstance(minutes, int | float) or not 0 < minutes <= MAX_MINUTES:
            raise ControlError(f"a watch lasts at most {MAX_MINUTES} minutes")
        if not why.strip() or not who:
            raise ControlError("who follows a line says why")
        if len(self._watches) >= MAX_WATCHES:
            raise ControlError(f"{MAX_WATCHES} lines are followed already")
        calls = _texts(request.get("calls"))
        watch = _Watch(self._target(str(request.get("target", "")), calls), _number(request.get("ident")))
        self._take_up(watch, calls)
        ends_at = asyncio.get_running_loop().time() + 60 * minutes
        if not self._watches:
            self._messages.append(self.passed)
            self._facts.append(self.fact)
        self._watches.append(watch)
        self._log.warning("watch_begins", line=watch.target.line, minutes=minutes, who=who, why=why)
        told = 0
        try:
            meant = [watch.target.call_id] if watch.target.call_id else []
            yield {"kind": "begins", "line": watch.target.line, "minutes": minutes, "calls": meant}
            while (left := ends_at - asyncio.get_running_loop().time()) > 0:
                event: Row = {"kind": "alive", "left_out": watch.left_out}
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, HEARTBEAT_S)):
                        event = await watch.events.get()
                told += event["kind"] != "alive"
                yield event
            yield {"kind": "over", "told": told, "left_out": watch.left_out}
        finally:
            self._watches.remove(watch)
            if not self._watches:
                self._messages.remove(self.passed)
                self._facts.remove(self.fact)
                self._recent.clear()
            self._log.warning("watch_ends", line=watch.target.line, who=who, told=told, left_out=watch.left_out)

    def _take_up(self, watch: _Watch, calls: list[str]) -> None:
        """Follow the calls that the watch follows already at other workers."""
        early = [(ident, call_id) for ident, call_id in self._early if ident == watch.ident]
        for key in early:
            del self._early[key]
        for call_id in (*calls, *(call_id for _, call_id in early)):
            watch.follow(call_id)

    def _target(self, name: str, calls: list[str]) -> Target:
        """What is meant by a name; `calls` are those that another worker means by it. Raises ControlError."""
        snapshot = self._engine.desk.snapshot
        if (call := self._engine.calls.by_id.get(name)) is not None:
            return Target("", frozenset(), (), "", call.record.call_id)
        if (line := snapshot.lines.get(name)) is not None:
            accounts = [snapshot.accounts[user] for user in line.accounts if user in snapshot.accounts]
            numbers = tuple(number for account in accounts for number in account.numbers)
            return Target(line.id, frozenset(account.user for account in accounts), numbers, line.area_code)
        number = classify(name.encode(), "").canonical
        account = snapshot.account_of(number) if number.startswith("+") else None
        if account is None and calls:
            return Target("", frozenset(), (), "", calls[0])
        if account is None:
            raise ControlError(f"there is no line, assigned number or live call {name[:80]!r} on this node")
        return Target("", frozenset(), (number,), snapshot.lines[account.line].area_code)


def _row(passed: Passed, call_id: str) -> Row:
    return {
        "kind": "message",
        "at_ns": passed.at_ns,
        "direction": "out" if passed.outgoing else "in",
        "transport": passed.transport,
        "local": passed.local,
        "remote": passed.remote,
        "call_id": call_id,
        "data": without_credentials(passed.data).decode("latin-1"),
    }


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
