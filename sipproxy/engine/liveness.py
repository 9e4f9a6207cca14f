"""Whether the parties of an answered call are still there (design: invariants 2 and 4; RFC 4028 §8.3, RFC 3261 §12.2.1.2).

Where a session interval no longer than ours was agreed, its refreshes are the proof: without one the session is over. Elsewhere
each party that was not heard for `probe_s` is asked by an OPTIONS within the dialog: 481, 408 and silence mean that it is
gone, any other answer that it lives. A call whose party is gone is ended with a BYE to both. An emergency call is ended only
when both are gone, whatever interval was agreed: the caller may still speak where its signalling is lost.

Pure. `Watch` keeps one dialog's deadlines and proofs; the functions below it act on the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from sipproxy.engine import ending
from sipproxy.engine.causes import TIMER_EXPIRY
from sipproxy.engine.dialogs import Side
from sipproxy.engine.forward import via_of
from sipproxy.sip.build import Sent
from sipproxy.sip.dialog import write_probe

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.actions import Now
    from sipproxy.engine.call import Call, Dialog
    from sipproxy.engine.session import Agreed
    from sipproxy.sip.message import Response

__all__ = ["GONE", "Side", "Watch", "check", "heard", "known", "refreshed", "watch"]

GONE = frozenset([481, 408])  # RFC 3261 §12.2.1.2: after these a dialog is over


@dataclass(slots=True)
class Watch:
    """One confirmed dialog. Bounds in seconds, 0 for never; `_at` in monotonic seconds."""

    probe_s: float  # of silence until a side is asked
    longest_s: float  # an agreed interval above it does not replace probes
    caller: Now  # the last message from him
    callee: Now
    expires_at: float = inf
    gone: tuple[Side, ...] = ()
    _ask_caller_at: float = inf
    _ask_callee_at: float = inf
    _failed: tuple[Side, ...] = ()  # whose last probe failed

    @classmethod
    def start(cls, now: Now, *, probe_s: float, longest_s: float) -> Watch:
        """A dialog that is confirmed now, or found again after a restart."""
        at = now.mono + probe_s if probe_s else inf
        return cls(probe_s, longest_s, now, now, _ask_caller_at=at, _ask_callee_at=at)

    def proof_of(self, side: Side) -> Now:
        """The last message from that side."""
        return self.callee if side else self.caller

    def _ask_at(self, side: Side, at: float) -> None:
        if side:
            self._ask_callee_at = at
        else:
            self._ask_caller_at = at

    @property
    def proof(self) -> Now:
        """The last instant at which both parties are known to have been there."""
        return self.callee if self.callee < self.caller else self.caller

    @property
    def next_at(self) -> float:
        """The earliest deadline, infinite when there is none."""
        return self.expires_at if self.expires_at < inf else min(self._ask_caller_at, self._ask_callee_at)

    def heard(self, side: Side, now: Now, sent: Now | None = None) -> None:
        """A message of that side arrived, which proves that it was there when the message was sent, at the earliest."""
        ask_at = now.mono + self.probe_s if self.probe_s else inf
        proof = now if sent is None else max(self.proof_of(side), min(sent, now))
        if side:
            self.callee, self._ask_callee_at = proof, ask_at
        else:
            self.caller, self._ask_caller_at = proof, ask_at
        if self.gone:
            self.gone = _without(self.gone, side)
        if self._failed:
            self._failed = _without(self._failed, side)

    def refreshed(self, interval_s: int | None, now: Now) -> None:
        """A 2xx to a session refresh request passed with this interval, None for a session without one."""
        counts = interval_s is not None and interval_s <= self.longest_s
        self.expires_at = now.mono + (interval_s or 0) if counts else inf

    def due(self, now: float) -> list[Side]:
        """The sides to be asked now. Each is asked once until `heard` or `failed` tells what came of it."""
        if self.expires_at < inf:
            return []
        asks = zip(Side, (self._ask_caller_at, self._ask_callee_at), strict=True)
        sides = [side for side, at in asks if at <= now]
        for side in sides:
            self._ask_at(side, inf)
        return sides

    def failed(self, side: Side, now: float, *, again_s: float) -> bool:
        """A probe got no answer that proves life; whether the side is gone. `again_s` is 0 when there is no doubt about it: a
        transport that failed once may be a connection that is being renewed."""
        doubt = again_s > 0 and side not in self._failed
        self._failed = (*_without(self._failed, side), side)
        self._ask_at(side, now + (again_s if doubt else self.probe_s or inf))
        if not doubt:
            self.gone = (*_without(self.gone, side), side)
        return not doubt


def _without(sides: tuple[Side, ...], side: Side) -> tuple[Side, ...]:
    return tuple(one for one in sides if one is not side)


@dataclass(eq=False, slots=True)
class Probe:
    """User of the transaction that asks one side."""

    call: Call
    dialog: Dialog
    side: Side
    sent: Now

    def response(self, _key: Hashable, response: Response, /) -> None:
        if response.status < 200:
            return  # a hop's word, not the party's
        if response.status in GONE:
            _lost(self, again_s=0)
        elif response.status == 503 and self.dialog.target.kind == "forward" and self.side is Side.CALLEE:
            self.failed(None, timed_out=False)  # the forwarded part's own word: it could not send
        else:
            heard(self.call, self.dialog, self.side, sent=self.sent)

    def failed(self, _key: Hashable, /, *, timed_out: bool) -> None:
        _lost(self, again_s=0 if timed_out else 64 * self.call.desk.settings.timers.t1)


def watch(call: Call, dialog: Dialog, agreed: Agreed | None) -> None:
    """Begin to watch over a dialog with known sides, whose 2xx told the caller of this interval."""
    settings = call.desk.settings
    now = call.desk.now
    if call.head is None:
        dialog.watch = Watch.start(now, probe_s=settings.probe_s, longest_s=settings.session_expires_s)
    else:
        dialog.watch = Watch.start(now, probe_s=0, longest_s=0)  # the call that it is a part of asks, and ends both
    call.proof = now if call.proof is None else max(call.proof, now)
    refreshed(call, dialog, agreed)


def refreshed(call: Call, dialog: Dialog, agreed: Agreed | None) -> None:
    """A 2xx to INVITE or UPDATE went upstream: its interval replaces what held before (RFC 4028 §8.2)."""
    if dialog.watch is None:
        return
    if not call.is_emergency:
        dialog.watch.refreshed(agreed.interval_s if agreed is not None else None, call.desk.now)
    call.await_bound()


def heard(call: Call, dialog: Dialog, side: Side, *, sent: Now | None = None) -> None:
    """A message of that side arrived: proof of life. `sent` is the earliest instant at which it can have been sent first, where
    it may be a repetition: what a party's transactions repeat does not say that its dialog is still there."""
    found = dialog.watch
    if found is None or dialog.ended or not call.is_answered:
        call.seen()
        return
    found.heard(side, _heard_at(call, dialog, side) if call.head is not None else call.desk.now, sent)
    call.alive(found.proof)
    if found.next_at < call.bound_at:  # else the call is looked at early enough: what is heard of puts bounds off
        call.await_bound()


def _heard_at(call: Call, dialog: Dialog, side: Side) -> Now:
    """When that side was heard: of a forwarded part's caller, what the forwarded call knows of him. Its own question to the
    callee, which passes by here, is no word of his."""
    before = call.head.dialog(dialog.to_tag) if call.head is not None and side is Side.CALLER else None
    return before.watch.proof_of(side) if before is not None and before.watch is not None else call.desk.now


def known(call: Call, dialog: Dialog, side: Side) -> Now:
    """The last proof of life of that side of a watched dialog. Of a forwarded part's caller the forwarded call, which asks him,
    may know a later one."""
    assert dialog.watch is not None
    own = dialog.watch.proof_of(side)
    before = call.head.dialog(dialog.to_tag) if call.head is not None and side is Side.CALLER else None
    if call.head is None or before is None or before.watch is None:
        return own
    return max(own, known(call.head, before, side))


def check(call: Call, dialog: Dialog) -> None:
    """A deadline of the dialog's watch may be due; the next one is to be awaited. Early and repeated calls are harmless."""
    found, now = dialog.watch, call.desk.now.mono
    if found is None or dialog.ended or not call.is_answered:
        return
    if found.expires_at <= now:
        call.desk.count("parties_lost", "expired")
        _end(call, dialog)
        return
    for side in found.due(now):
        _send(call, dialog, side)


def _send(call: Call, dialog: Dialog, side: Side) -> None:
    if dialog.sides is None:
        return
    desk, party = call.desk, dialog.sides[side]
    desk.count("probes", side.name.lower())
    probe = Probe(call, dialog, side, desk.now)
    to = ending.reach(call, dialog, side)
    via = via_of(desk, to)
    if via is None:
        probe.failed(None, timed_out=False)  # no listener of ours leads there any more
        return
    value, branch = via
    request = Sent(b"OPTIONS", write_probe(party, value))
    desk.transactions.new_client(request, branch, to, probe, desk.now.mono)


def _lost(probe: Probe, *, again_s: float) -> None:
    call, dialog = probe.call, probe.dialog
    if dialog.watch is None or dialog.ended or not call.is_answered:
        return
    if not dialog.watch.failed(probe.side, call.desk.now.mono, again_s=again_s):
        call.await_bound()
        return
    call.desk.count("parties_lost", probe.side.name.lower())
    if call.is_emergency and len(dialog.watch.gone) < len(Side):
        call.await_bound()
        return
    _end(call, dialog)


def _end(call: Call, dialog: Dialog) -> None:
    # DEVIATION: RFC 4028 §8.3, a proxy MUST NOT send a BYE for a session that expired, we do: otherwise the party that is left
    # would hold its channel, and could talk without being recorded.
    ending.hang_up(call, "session_expired", cause=TIMER_EXPIRY, certain=False, only=dialog)
