"""A load generator on bytes: simulated routers, trunk and emergency centre of one process, driven by one clock.

Arrivals follow the clock of the mix (open loop): whatever the system under test does, the next call begins when it is due; how
late the generator itself was is kept. Delays are from the moment that one socket here sent to the kernel's stamp at the other.
Leaves out: TCP and TLS, reliable provisional responses, forking, session timers; the parties of agents.py have more habits.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from loadtest.attempt import Attempt, Side
from loadtest.boxes import AGENT, ALLOW, Box
from loadtest.clockwork import Clockwork
from loadtest.mix import KINDS, LOST_BYE_S, SPARE, Kind, Mix, arrivals
from loadtest.repeating import LIFETIME_S, T2, Repeat, Repeater
from loadtest.seen import Seen
from loadtest.truth import CallTruth
from loadtest.wire import BRANCH, RETRY, Head, Wire, body_of, head_of, receiver_of, response_to, tag_of

if TYPE_CHECKING:
    from loadtest.node import LineSpec
    from loadtest.wire import Address

__all__ = ["Generator"]

MAX_CHALLENGES = 2  # a second one is a stale nonce
BOXES_OF_A_WIRE, EXPIRES_S = 500, 7200
LEAVING_PER_S = 200  # calls that are hung up, so that a node is not flooded by the end of a run
LATE_S = 0.01  # a call that begins later than this was not started in time
DIALLED = {"blocked": "090055501", "emergency": "112"}  # the others: a subscriber of the carrier's
SUBSCRIBER = "03023125001"
OURS = re.compile(rb"branch=z9hG4bK([cr])([0-9]+)\.([0-9]+)([A-Z]*)")
CALL = re.compile(rb"\r\nCall-ID: m([0-9]+)-([0-9a-f]+)\r\n")
NOT_NOW = 503


class Generator:
    """The parties. `ended` is told each call that is over, and whether it may be without a record, and its slack in ms."""

    def __init__(
        self, mix: Mix, lines: Sequence[LineSpec], full: Sequence[LineSpec], *, domain: str, ended: Callable[..., None]
    ) -> None:
        self.mix = mix
        self.seen = Seen()
        self.calls: dict[int, Attempt] = {}
        self.proxy: Address = ("", 0)
        self._ended, self._rng = ended, random.Random(mix.seed)
        self._shares = list(accumulate(mix.share(kind) for kind in KINDS))
        self._domain, self._run = domain.encode(), secrets.token_hex(4).encode()
        self._loop = asyncio.get_running_loop()
        self._clock = Clockwork(self._loop)
        self._repeater = Repeater(self._clock, self._gave_up)
        self._numbers, self._zero = 0, 0.0
        self.trunk, self.psap = Wire(self._take, "127.0.0.2"), Wire(self._take, "127.0.0.3")
        self._wires = [self.trunk, self.psap]
        self.boxes = self._make_boxes(lines)
        self._full = self._make_boxes(full, first=len(self.boxes))
        self._all = [*self.boxes, *self._full]
        self._free: deque[Box] = deque(self.boxes * mix.accounts.calls_at_once)
        self.arriving, self._body = False, body_of("127.0.0.1")

    def _make_boxes(self, lines: Sequence[LineSpec], first: int = 0) -> list[Box]:
        boxes = []
        for index, line in enumerate(lines):
            if index % BOXES_OF_A_WIRE == 0:
                self._wires.append(Wire(self._take))
            user, password, algorithm = line.user.encode(), line.password.encode(), self.mix.accounts.algorithm
            boxes.append(Box(first + index, user, password, line.number, self._domain, algorithm, self._wires[-1]))
        return boxes

    def open(self, proxy: Address) -> None:
        """Begin to read."""
        self.proxy = proxy
        for wire in self._wires:
            self._loop.add_reader(wire.fileno(), wire.read)

    def close(self) -> None:
        """Leave at once."""
        self._clock.stop()
        for wire in self._wires:
            self._loop.remove_reader(wire.fileno())
            wire.close()

    @property
    def lost_sends(self) -> int:
        return sum(wire.blocked for wire in self._wires)

    @property
    def repeats(self) -> int:
        """Messages that were sent again since the clock was started."""
        return self._repeater.count

    def now(self) -> float:
        """Seconds of the run's clock."""
        return time.monotonic() - self._zero

    # -- registrations

    def register_all(self) -> int:
        """Begin to register everybody at the rate of the mix; how many there are."""
        rate, began = self.mix.accounts.register_per_s, time.monotonic()
        for index, box in enumerate(self._all):
            self._clock.at(began + index / rate, self._register, box)
        return len(self._all)

    def _register(self, box: Box) -> None:
        box.challenges, box.began_ns = 0, 0
        self._send_register(box)

    def _register_cold(self, box: Box) -> None:
        box.nonce = b""  # after a power cut
        self._register(box)

    def _send_register(self, box: Box) -> None:
        data = box.register(self._run, EXPIRES_S)
        self.seen.registers += 1
        at = box.wire.send(data, self.proxy)
        box.began_ns = box.began_ns or at
        self._repeater.start(box, box, data, self.proxy, T2)

    def _registered(self, box: Box, cseq: int, status: int, data: bytes, stamp: int) -> None:
        if cseq != box.cseq or status < 200 or not box.began_ns:
            return
        box.step += 1
        if status == 401 and box.challenges < MAX_CHALLENGES and box.challenged(data):
            box.challenges += 1
            self._send_register(box)
            return
        if status == 200:
            box.registered = True
            self.seen.registered += 1
            self.seen.delays["register"].add(self.now(), (stamp - box.began_ns) / 1e6)
        else:
            self.seen.register_refused[status] += 1
            wait = RETRY.search(data)
            self._clock.after(float(wait[1]) if wait else LIFETIME_S, self._register, box)
        box.began_ns = 0

    # -- arrivals

    def begin(self) -> None:
        """Start the clock: calls, refreshes and storms of the mix begin when they are due."""
        self._zero = time.monotonic()
        self._repeater.count = 0
        self.seen = Seen()  # what came before the first call is no part of the mix
        self.arriving = True
        self._next(arrivals(self.mix, self._rng))
        if self.mix.accounts.refresh_per_s:
            self._clock.after(1 / self.mix.accounts.refresh_per_s, self._refresh, (self._zero, 1))
        for storm in self.mix.storm:
            for index, box in enumerate(self.boxes[: storm.accounts]):
                due = self._zero + storm.at_s + index * storm.within_s / storm.accounts
                self._clock.at(due, self._register_cold, box)

    def _next(self, times: Iterator[float]) -> None:
        at = next(times, None)
        self.arriving = at is not None
        if at is not None:
            self._clock.at(self._zero + at, self._arrive, (at, times))

    def _arrive(self, due: tuple[float, Iterator[float]]) -> None:
        at, times = due
        if not self.arriving:
            return
        self._next(times)
        late = self.now() - at
        self.seen.late.add(at, 1000 * late)
        self.seen.late_starts += late > LATE_S
        (kind,) = self._rng.choices(KINDS, cum_weights=self._shares)
        box = self._rng.choice(self._full) if kind == "over_limit" else self._free.popleft() if self._free else None
        if box is None:
            self.seen.unstarted += 1
            return
        calls = self.mix.calls
        self.place(kind, box, self.mix.hold.draw(self._rng), by_callee=self._rng.random() < calls.ended_by_callee)

    def _refresh(self, turn: tuple[float, int]) -> None:
        began, count = turn
        if self.arriving:
            self._register(self.boxes[count % len(self.boxes)])
            self._clock.at(began + (count + 1) / self.mix.accounts.refresh_per_s, self._refresh, (began, count + 1))

    def occupy(self, hold_s: float = 10 * 86_400.0) -> None:
        """A call on each line of which it is the last channel, until `release`."""
        for box in self._full:
            self.place("answered", box, hold_s, by_callee=False)

    def release(self) -> None:
        """End the calls that occupy lines."""
        for attempt in list(self.calls.values()):
            if attempt.stage == "talking" and not self._is_ordinary(attempt.box):
                self._hang_up(attempt)

    def leave(self) -> None:
        """Begin no more calls, hang up those that talk, and others when they are answered."""
        self.arriving = False
        for number, attempt in enumerate(one for one in self.calls.values() if self._is_ordinary(one.box)):
            attempt.hold_s = attempt.hold_s if attempt.stage == "talking" else 0.0
            self._clock.after(number / LEAVING_PER_S, self._hang_up, attempt)

    # -- calls

    def place(self, kind: Kind, box: Box, hold_s: float, *, by_callee: bool) -> Attempt:
        """Send the INVITE of a call."""
        self._numbers += 1
        number, tag = self._numbers, b"f%d" % self._numbers
        call_id = b"m%d-%b" % (number, self._run)
        incoming = kind == "incoming"
        callee = self.psap if kind == "emergency" else self.trunk
        dialled = box.number if incoming else DIALLED.get(kind, SUBSCRIBER)
        near, far = (self.trunk, box.wire) if incoming else (box.wire, callee)
        user = b"+493023125001" if incoming else box.user
        caller = Side(near, b"N", tag, self.proxy, local=b"<sip:%b@%b>;tag=%b" % (user, self._domain, tag))
        truth = CallTruth("mix", "caller", call_id.decode(), dialled, time.monotonic(), time.time_ns() // 1_000_000)
        uri = b"sip:%b@%b" % (dialled.encode(), self._domain)
        attempt = Attempt(
            number, kind, truth, box, caller, Side(far, b"F", b"t%d" % number, self.proxy), call_id, uri, hold_s, by_callee
        )
        attempt.began = truth.started_at
        self.calls[number] = attempt
        self.seen.placed[kind] += 1
        if incoming:
            self._invite(attempt, b"P-Asserted-Identity: <sip:+493023125001@127.0.0.2>\r\n")
        else:
            known = box.credentials(b"Proxy-Authorization", b"INVITE", uri) if self.mix.accounts.keep_nonce else b""
            self._invite(attempt, known + AGENT + ALLOW)
        return attempt

    def _invite(self, attempt: Attempt, more: bytes) -> None:
        data, side = attempt.write_invite(more, self._body), attempt.caller
        side.step += 1
        attempt.invite_ns = side.wire.send(data, self.proxy)
        attempt.first_ns = attempt.first_ns or attempt.invite_ns
        self._repeater.start(attempt, side, data, self.proxy, LIFETIME_S)

    def _on_invite_response(self, attempt: Attempt, status: int, data: bytes, stamp: int) -> None:
        side = attempt.caller
        if status < 200:
            if attempt.stage == "calling":
                side.step += 1
                attempt.provisional = True
                if status > 100 and attempt.truth.ringing_at is None:
                    attempt.truth.ringing_at = time.monotonic()
                    if attempt.kind == "cancelled":
                        self._clock.after(self.mix.calls.ring_s, self._cancel, attempt)
            return
        if status >= 300:  # of which there may be thousands a second: no more is read than the ACK needs
            side.wire.send(attempt.of_invite(b"ACK", receiver_of(data)), self.proxy)
            if attempt.stage == "calling":
                self._refused(attempt, status, data, stamp)
            return
        head = head_of(data)
        if attempt.stage in ("calling", "lost"):
            self._answered(attempt, head, stamp)
        side.wire.send(attempt.write_ack(), side.hop)

    def _refused(self, attempt: Attempt, status: int, data: bytes, stamp: int) -> None:
        attempt.caller.step += 1
        if status in (401, 407) and attempt.tries < MAX_CHALLENGES and attempt.box.challenged(data):
            self.seen.delays["challenge"].add(self.now(), (stamp - attempt.invite_ns) / 1e6)
            attempt.tries += 1
            attempt.provisional = False
            header = b"Proxy-Authorization" if status == 407 else b"Authorization"
            self._invite(attempt, attempt.box.credentials(header, b"INVITE", attempt.uri) + AGENT + ALLOW)
            return
        attempt.truth.status = status
        attempt.truth.released_by = attempt.truth.released_by or "callee"
        self._over(attempt)

    def _answered(self, attempt: Attempt, head: Head, stamp: int) -> None:
        truth, side = attempt.truth, attempt.caller
        side.step += 1
        truth.answered_at, truth.status = time.monotonic(), 200
        side.remote = head.receiver
        side.learn(head, reverse=True)
        attempt.slack_ms += (time.time_ns() - attempt.ok_ns) / 1e6  # and until it was read here
        self.seen.delays["answer"].add(self.now(), (stamp - attempt.ok_ns) / 1e6)
        attempt.setup_ms = (stamp - attempt.first_ns) / 1e6
        self.seen.delays["setup"].add(self.now(), attempt.setup_ms)
        hold = 0.0 if attempt.stage == "lost" or attempt.kind == "cancelled" else attempt.hold_s
        attempt.stage, attempt.began = "talking", truth.answered_at
        self._clock.after(hold, self._hang_up, attempt)

    def _cancel(self, attempt: Attempt) -> None:
        if attempt.stage != "calling":
            return
        attempt.truth.released_by = "caller"
        data = attempt.of_invite(b"CANCEL", b"<%b>" % attempt.uri)
        attempt.caller.step += 1
        attempt.caller.wire.send(data, self.proxy)
        self._repeater.start(attempt, attempt.caller, data, self.proxy, T2)

    def _hang_up(self, attempt: Attempt) -> None:
        if attempt.stage != "talking":
            return
        truth = attempt.truth
        truth.ended_at = attempt.began = time.monotonic()
        truth.released_by = "callee" if attempt.by_callee else "caller"
        attempt.stage = "ending"
        if attempt.kind == "lost_bye":
            attempt.caller.gone = True
            return
        side = attempt.callee if attempt.by_callee else attempt.caller
        side.step += 1
        data = attempt.in_dialog(side, b"BYE")
        side.wire.send(data, side.hop)
        self._repeater.start(attempt, side, data, side.hop, T2)

    def _on_bye_response(self, attempt: Attempt, side: Side, status: int) -> None:
        if status < 200 or attempt.stage != "ending":
            return
        side.step += 1
        attempt.slack_ms += 1000 * (time.monotonic() - (attempt.truth.ended_at or 0.0))
        self._over(attempt, "" if status == 200 else f"BYE was answered {status}")

    def vanish(self, count: int) -> None:
        """As many calls lose both parties without a word, as in a power cut."""
        talking = [one for one in self.calls.values() if one.stage == "talking" and self._is_ordinary(one.box)]
        for attempt in self._rng.sample(talking, min(count, len(talking))):
            attempt.caller.silent = attempt.callee.silent = True
            attempt.truth.ended_at = time.monotonic()
            self._over(attempt, rest_s=LOST_BYE_S)  # until the node has noticed

    def _over(self, attempt: Attempt, fault: str = "", *, rest_s: float = SPARE) -> None:
        """The call is over: tell what became of it, and let its router rest before its next call."""
        status, kind = attempt.truth.status, attempt.kind
        attempt.stage = "over"
        attempt.caller.step += 1
        attempt.callee.step += 1
        if not fault and not attempt.as_expected:
            fault = f"ended with {status}" if status else "had no final response"
        if fault:
            self.seen.fail(f"{kind} {attempt.truth.call_id}: {fault}")
        if self._is_ordinary(attempt.box) or kind != "answered":
            self.seen.outcomes[kind, status] += 1
            self.seen.ended.add(self.now(), 1.0 if fault else 0.0)
            self.seen.good += not fault and attempt.in_time
        self._ended(attempt.truth, optional=status == NOT_NOW or not (status or attempt.provisional), slack_ms=attempt.slack_ms)
        self._clock.after(rest_s, self._forget, attempt)

    def _is_ordinary(self, box: Box) -> bool:
        return box.index < len(self.boxes)

    def _forget(self, attempt: Attempt) -> None:
        del self.calls[attempt.number]
        if self._is_ordinary(attempt.box):
            self._free.append(attempt.box)

    # -- what comes

    def _take(self, wire: Wire, data: bytes, source: Address, stamp: int) -> None:
        if data.startswith(b"SIP/2.0 "):
            found = OURS.search(data)
            if found is not None:
                self._on_response(found, int(data[8:11]), data, stamp)
            return
        method = data[: data.find(b" ")]
        found = CALL.search(data)
        attempt = self.calls.get(int(found[1])) if found is not None and found[2] == self._run else None
        if method == b"INVITE" and attempt is not None:
            self._on_invite(attempt, data, source, stamp)
        elif method == b"ACK":
            if attempt is not None and not (attempt.by_callee and attempt.stage == "ending"):  # that would stop its BYE
                attempt.callee.step += 1
        elif method:
            self._on_request(wire, method, attempt, data, source)

    def _on_response(self, found: re.Match[bytes], status: int, data: bytes, stamp: int) -> None:
        number, cseq, letters = int(found[2]), int(found[3]), found[4]
        if found[1] == b"r":
            self._registered(self._all[number], cseq, status, data, stamp)
            return
        attempt = self.calls.get(number)
        if attempt is None:
            return
        if letters == b"I":
            if cseq == attempt.caller.cseq or attempt.stage != "calling":
                if b" CANCEL\r\n" not in data:
                    self._on_invite_response(attempt, status, data, stamp)
                elif status >= 200:
                    attempt.caller.step += 1
        elif letters.endswith(b"B"):
            self._on_bye_response(attempt, attempt.callee if letters[:1] == b"F" else attempt.caller, status)

    def _on_invite(self, attempt: Attempt, data: bytes, source: Address, stamp: int) -> None:
        """The call has come to its callee; what is answered is repeated until the ACK."""
        found = BRANCH.search(data)
        branch = found[1] if found is not None else b""
        side = attempt.callee
        if attempt.head is not None:
            if branch == attempt.branch and attempt.response:
                side.wire.send(attempt.response, source)
            return
        self.seen.delays["invite"].add(self.now(), (stamp - attempt.invite_ns) / 1e6)
        attempt.answers(head_of(data), branch)
        side.hop = source if not side.routes else side.hop
        if attempt.kind == "busy":
            self._answer(attempt, b"486 Busy Here", source)
            return
        attempt.response = attempt.write_response(b"180 Ringing", self._body)
        side.wire.send(attempt.response, source)
        if attempt.kind == "cancelled":
            return
        if self.mix.calls.ring_s:
            self._clock.after(self.mix.calls.ring_s, self._pick_up, (attempt, source))
        else:
            self._answer(attempt, b"200 OK", source)

    def _pick_up(self, ringing: tuple[Attempt, Address]) -> None:
        attempt, source = ringing
        if attempt.response.startswith(b"SIP/2.0 180"):
            self._answer(attempt, b"200 OK", source)

    def _answer(self, attempt: Attempt, status: bytes, source: Address) -> None:
        side = attempt.callee
        attempt.response = attempt.write_response(status, self._body)
        side.step += 1
        at = side.wire.send(attempt.response, source)
        attempt.ok_ns = attempt.ok_ns or at
        self._repeater.start(attempt, side, attempt.response, source, T2)

    def _on_request(self, wire: Wire, method: bytes, attempt: Attempt | None, data: bytes, source: Address) -> None:
        """BYE and CANCEL of a call, questions whether somebody is there, and whatever else the node may ask."""
        head = head_of(data)
        in_dialog = bool(tag_of(head.receiver))
        side = attempt.side_of(head) if attempt is not None else None
        if side is not None and side.silent:
            return
        if in_dialog and (attempt is None or side is None or side.gone):
            wire.send(response_to(head, b"481 Call/Transaction Does Not Exist"), source)
            return
        wire.send(response_to(head, b"200 OK", tag=b"o"), source)
        if attempt is None or side is None:
            return
        if method == b"CANCEL" and attempt.response.startswith(b"SIP/2.0 180"):
            self._answer(attempt, b"487 Request Terminated", source)
        elif method == b"BYE":
            self._on_bye(attempt, side)

    def _on_bye(self, attempt: Attempt, side: Side) -> None:
        if attempt.stage == "talking":  # nobody here has hung up: it is the node that ends the call
            attempt.truth.ended_at = time.monotonic()
            attempt.truth.released_by = ""
            self._over(attempt, "was ended by the node")
        elif attempt.stage == "ending" and attempt.kind == "lost_bye" and side is attempt.callee:
            self._over(attempt)

    # -- what is not answered

    def _gave_up(self, repeat: Repeat) -> None:
        subject = repeat.subject
        if isinstance(subject, Box):
            self.seen.register_refused[0] += 1
            self._register(subject)
        elif repeat.side is subject.caller and subject.stage == "calling":
            self._lose(subject)
        elif subject.stage == "ending":
            self._over(subject, "its BYE was not answered")

    def _lose(self, attempt: Attempt) -> None:
        """No final response: an answer may still come as long as the callee repeats it."""
        attempt.stage, attempt.began = "lost", time.monotonic()
        attempt.caller.step += 1
        self._clock.after(LIFETIME_S + SPARE, self._give_up, attempt)

    def _give_up(self, attempt: Attempt) -> None:
        if attempt.stage == "lost":
            self._over(attempt)

    def sweep(self) -> None:
        """Give up calls that neither went on nor ended: to be called now and then."""
        for attempt in list(self.calls.values()):
            if attempt.is_stuck(time.monotonic(), self.mix.calls.ring_s):
                self._lose(attempt) if attempt.stage == "calling" else self._over(attempt, "did not end")

    @property
    def live(self) -> int:
        """Calls of the mix that are not over; those that occupy lines go on until `release`."""
        return sum(
            one.stage != "over" and (one.kind != "answered" or self._is_ordinary(one.box)) for one in self.calls.values()
        )

    @property
    def occupied(self) -> bool:
        """Whether the calls that occupy lines all talk, before the clock is started."""
        return all(attempt.stage == "talking" for attempt in self.calls.values())

    @property
    def occupying(self) -> bool:
        """Whether there are calls that occupy lines, or are about to."""
        return any(not self._is_ordinary(one.box) and one.stage != "over" for one in self.calls.values())
