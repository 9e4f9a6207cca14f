"""What a node under load, or under attack, does not take: decided on the bytes, before anything is parsed.

Pure. Four things refuse a message: the budget of its source (an IPv4 address, an IPv6 /64) or of its line, the budget that all
strangers share, the node's own state, and a new INVITE's wait in a queue that does not get shorter. Refused first are scanners,
then what strangers ask outside a call, then REGISTER, then new INVITEs. Never refused are emergency calls. What belongs to a
call (requests with a To tag, ACK, CANCEL and responses) has budgets that no call can need (`parts`). Trunk routes and other
nodes are not counted at all, but a trunk route's new calls are refused in a queue.

A stranger is a source without a live binding, outside the emergency access networks. He gets no answer; a customer gets a 503
with a Retry-After that spreads a storm over the time that the node needs for it (RFC 3261 §21.5.4).
"""

from __future__ import annotations

import math
from collections import Counter
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.engine.bucket import Bucket, Buckets
from sipproxy.engine.kinds import (
    INVITE,
    PART,
    REGISTER,
    SCANNER,
    Copy,
    Kind,
    copy_of,
    has_credentials,
    kind_of,
    may_be_emergency,
    nonce_in,
)
from sipproxy.engine.pace import MIN_RETRY_S, Pace
from sipproxy.engine.parts import Parts
from sipproxy.engine.spending import Spending
from sipproxy.sip.flow import LOOP, source_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.calls import Calls
    from sipproxy.engine.settings import Rates
    from sipproxy.engine.state import Desk
    from sipproxy.sip.flow import Flow

__all__ = [
    "Load",
    "Shedder",
    "Signals",
    "Verdict",
]

MAX_CREDIT = 65_536  # bytes that a source may get back at most for what it sent before
STEP_UP = 2  # samples in a row above the mark until one more kind is refused: one is a hiccup
FULL = 0.8  # of the transaction tables
CALM = 0.5  # of a mark; what stays below it for a while is calm
# What has waited for T1 is repeated by who sent it (RFC 3261 §17.1.2.2): its answer would come too late, and all others would
# be later for it. Until the node has caught up only calls are looked at.
BEHIND_S = 0.5
CALM_S = 1.0  # without a sign of load until one kind less is refused
# Of the lateness at which the node is under load: a new call that waited so long is one of a queue. What was begun goes before
# it (`backlog`), so that new calls get what time is left, and those that are refused hear of it well before T1.
QUEUED = 0.5
STANDING_S = 1.0  # for which there has to be a queue until new calls are refused: what a hiccup leaves is worked off before
# Of that wait, and for so long nothing may have waited for it until the queue is held to be gone: the next hiccup is one again.
EMPTY, EMPTY_S = 0.25, 0.2

REPEATED_S = 32.0  # for how long copies of an INVITE come after it: 64*T1 (RFC 3261 §17.1.1.2)

_LABELS = ("", *(kind.name.lower() for kind in Kind))
# By kind, what has to be left of the budget that strangers share, so that what is more important still gets some of it.
_FLOORS = (1.0, 0.75, 0.5, 0.25, 0.0, 0.0)


class Load(IntEnum):
    """The node's state: what is refused besides what is over its budget. Each state refuses what those before it do."""

    CALM = 0
    SCANNERS = 1
    OPTIONS = 2
    REGISTER = 3
    INVITE = 4


class Signals(NamedTuple):
    """What the shell sees every 0.1 s: lateness of its loop in seconds, datagrams that found no room meanwhile, and how many
    seconds messages had waited to be looked at, those of strangers apart: they wait for all others."""

    lag_s: float
    drops: int
    wait_s: float = 0.0
    strangers_s: float = 0.0


class Verdict(NamedTuple):
    """Why a message is not taken; `retry_s` is what a customer is told, 0 where nothing is answered."""

    reason: str
    retry_s: int = 0
    user: str = ""  # an account with a live binding over this flow


_BEHIND, _LATE, _PARTS = Verdict("behind"), Verdict("late"), Verdict("parts")
_ACKNOWLEDGED = Verdict("acknowledged")  # the end of a call that was turned away


class Shedder:
    """Stands before the engine. `counts` are messages not taken by reason and kind."""

    def __init__(self, desk: Desk, calls: Calls, rates: Rates) -> None:
        self._desk, self._calls, self._rates = desk, calls, rates
        self.load = Load.CALM
        self.since = 0.0  # monotonic seconds of the last change
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.changes: Counter[str] = Counter()
        self.sources = Buckets(rates.sources)
        self.lines = Buckets(rates.sources)
        self.turned_away = Buckets(rates.sources)  # INVITEs that got a 503, by source and branch
        self._strangers = Bucket(rates.strangers_burst, 0.0)
        self.spending = Spending()
        self.parts = Parts(desk, calls, rates, self.spending)
        self.pace = Pace(rates)
        self._most = max(MAX_CREDIT, rates.credit_bytes)
        self._high = 0
        self._middling = 0
        self._high_at = 0.0
        self._is_behind = False
        self._queued_s = QUEUED * rates.lag_s
        self._queued_since = math.inf  # that new calls have waited so long
        self._waited_at = 0.0  # when one last did for a part of that
        self.has_queue = False  # of new calls, that does not get shorter
        self._told_queue, self._told_late = False, 0  # what the log says of that, and how many it said were refused
        self._notable_s = EMPTY * self._queued_s  # waits up to here say nothing; 0.0 while there may be a queue
        desk.may_send = self.may_send

    def use(self, rates: Rates) -> None:
        """Count by these from now on."""
        self._rates = rates
        self._queued_s = QUEUED * rates.lag_s
        self._notable_s = min(self._notable_s, EMPTY * self._queued_s)
        self.pace.use(rates)
        self.parts.rates = rates

    def check(self, data: bytes, flow: Flow, waited_s: float = 0.0, kind: Kind | None = None) -> Verdict | None:
        """Why this message is not to be taken, None when it is. It waited for so many seconds to be read (0.0: not known).
        `kind` is what it counts as, where it is not SIP."""
        if flow.transport == LOOP:
            return None
        desk, notable = self._desk, waited_s > self._notable_s
        source = self.sources.find(source_of(flow.host)) or self.source(flow)
        if source.trusted or self._is_ours(flow):
            return self._trunk(data, flow, waited_s, kind) if notable else None
        if data[:1] in (b"\r", b"\n"):
            data = data.lstrip(b"\r\n")  # RFC 3261 §7.5: line ends before the first line are ignored
        credit = source.credit + len(data)
        source.credit = credit if credit < self._most else self._most
        kind = kind or kind_of(data)
        user, sharing = desk.location.accounts_at(flow, desk.now.utc_ms)
        copy = None if self.turned_away.is_empty else self._copy(kind, data, flow)
        if user and kind is PART and copy is None:  # as most of what customers send
            return self._part(data, user, sharing)
        verdict = self._again(kind, copy, waited_s) if copy is not None else None
        if notable and kind is INVITE and verdict is None:
            verdict = self._late(data, flow, waited_s, user)
        if verdict is not None:
            pass
        elif self._is_behind and kind <= (REGISTER if user else INVITE):
            # A customer is told when to come again, or he would repeat it every four seconds, which keeps the node behind.
            verdict = Verdict("behind", self._retry(kind)) if user and kind is REGISTER else _BEHIND
        elif user and kind is PART:
            return self._part(data, user, sharing)
        elif user:
            verdict = self._customer(kind, data, flow, user, sharing)
        else:
            verdict = self._source(kind, data, flow, source)
        if verdict is not None:
            self._refused(kind, data, flow, copy, verdict)
        if not user and desk.drops.is_on:
            self._judge(kind, data, flow, verdict)
        return verdict

    def _refused(self, kind: Kind, data: bytes, flow: Flow, copy: Copy | None, verdict: Verdict) -> None:
        if kind is INVITE and verdict.retry_s and verdict.reason != "repeated":
            self.turned_away.add(copy or copy_of(data, flow), Bucket(verdict.retry_s, self._desk.now.mono))
        self.counts[verdict.reason, _LABELS[kind]] += 1

    def _judge(self, kind: Kind, data: bytes, flow: Flow, verdict: Verdict | None) -> None:
        """Tell the drop list what speaks against a stranger, or for him."""
        if kind is SCANNER or (verdict is not None and verdict.reason == "source"):
            self._desk.drops.offended(flow.host, "scan" if kind is SCANNER else "flood")
        elif kind is PART and _asks_for_help(data):
            self._desk.drops.called_for_help(flow.host)

    # Copies of an INVITE that was turned away

    def _copy(self, kind: Kind, data: bytes, flow: Flow) -> Copy | None:
        """What an INVITE, or an ACK, has in common with an INVITE that may have been turned away; None for what has nothing."""
        may_be = kind is INVITE or (kind is PART and data.startswith(b"ACK "))
        return copy_of(data, flow) if may_be else None

    def _again(self, kind: Kind, copy: Copy, waited_s: float) -> Verdict | None:
        """The same answer for a copy of an INVITE that was turned away: its caller has given the call up, and nobody would
        end it (RFC 3261 §8.2.7: a server without state answers a copy as it did the first). One that was there before the first
        was answered gets none: it asks for what is on its way. The ACK of the answer, which has the INVITE's branch
        (§17.1.1.3), ends here: there is no transaction that waits for it."""
        found = self.turned_away.find(copy)
        if found is None or self._desk.now.mono - found.at >= REPEATED_S:
            return None
        if kind is PART:
            return _ACKNOWLEDGED
        return Verdict("repeated", round(found.tokens) if self._desk.now.mono - waited_s >= found.at else 0)

    def take_back(self, data: bytes, flow: Flow) -> None:
        """An INVITE that was to be turned away is taken after all: it is a copy of one that was, whose ACK is waited for."""
        self.turned_away.forget(copy_of(data, flow))

    # New calls that have waited too long to be looked at

    def _late(self, data: bytes, flow: Flow, waited_s: float, user: str) -> Verdict | None:
        """Why an INVITE is not to be taken that waited so long. Strangers wait for all others, and make no queue of these; who
        waited in vain and is not known is not answered."""
        known = user or self._desk.location.flows_at(flow.host)
        if known or self._desk.settings.in_access_network(flow.host):
            is_late = self._is_late(data, waited_s)
        else:
            is_late = self.has_queue and waited_s >= self._queued_s
        if not is_late:
            return None
        return Verdict("late", self._retry(INVITE), user) if known else _LATE

    def _is_late(self, data: bytes, waited_s: float) -> bool:
        """Take note of how long an INVITE waited to be looked at; whether that is too long, in a queue that does not get
        shorter. One that answers a challenge may have waited twice as long: something has been done for it."""
        now, bound = self._desk.now.mono, self._queued_s
        if waited_s >= EMPTY * bound:
            self._waited_at = now
        if has_credentials(data):
            bound /= QUEUED
        elif waited_s < bound:
            self._queued_since = math.inf
        if waited_s < bound:
            return False
        self._queued_since, self._notable_s = min(self._queued_since, now), 0.0
        self.has_queue = self.has_queue or now - self._queued_since >= STANDING_S
        return self.has_queue

    def _trunk(self, data: bytes, flow: Flow, waited_s: float, kind: Kind | None) -> Verdict | None:
        """A message of a queue that a trunk route or another node sent: a trunk's new calls are refused as customers' are."""
        if not data.startswith((b"INVITE ", b"ACK ")) or self._desk.peers.has_host(flow.host):
            return None
        kind = kind or kind_of(data)
        copy = None if self.turned_away.is_empty else self._copy(kind, data, flow)
        verdict = self._again(kind, copy, waited_s) if copy is not None else None
        if verdict is None and kind is INVITE and self._is_late(data, waited_s):
            verdict = Verdict("late", self._retry(kind))
        if verdict is not None:
            self._refused(kind, data, flow, copy, verdict)
        return verdict

    def is_node(self, flow: Flow) -> bool:
        """Whether it may be another node's."""
        return self._desk.peers.has_host(flow.host)

    def is_known(self, flow: Flow) -> bool:
        """Whether its source is no stranger: a trunk route, another node, where customers are registered, or in an emergency
        access network."""
        desk, source = self._desk, self.sources.find(source_of(flow.host))
        return (
            (source.trusted if source is not None else self._is_trunk(flow))
            or self._is_ours(flow)
            or desk.location.flows_at(flow.host) > 0
            or desk.settings.in_access_network(flow.host)
        )

    def floods(self, data: bytes, flow: Flow) -> bool:
        """Whether a part of a call came by a customer's flow for which there is no budget left."""
        desk = self._desk
        user, sharing = desk.location.accounts_at(flow, desk.now.utc_ms)
        return user != "" and self.parts.is_too_much(data, user, sharing)

    # Budgets

    def source(self, flow: Flow) -> Bucket:
        """What is remembered of the source of a flow."""
        key = source_of(flow.host)
        found = self.sources.find(key)
        if found is not None:
            return found
        new = self._new_source(key)
        # Only what whoever sends from there is: the /64 may be others' too, and a datagram bears no certificate.
        new.trusted = ":" not in flow.host and self._is_trunk(flow._replace(names=()))
        return new

    def _new_source(self, key: Hashable) -> Bucket:
        new = self.sources.add(key, Bucket(self._rates.source_burst, self._desk.now.mono))
        new.credit = self._rates.credit_bytes
        return new

    def _is_ours(self, flow: Flow) -> bool:
        """Whether it is another node's, or a trunk route's for which nothing speaks that is remembered of its source."""
        return self._desk.peers.has_host(flow.host) or ((flow.names != () or ":" in flow.host) and self._is_trunk(flow))

    def _is_trunk(self, flow: Flow) -> bool:
        return any(route.is_from(flow) for route in self._desk.settings.trunks)

    def _customer(self, kind: Kind, data: bytes, flow: Flow, user: str, sharing: int) -> Verdict | None:
        """A message of no call over the flow of live bindings, which so many accounts share; `user` is one of them."""
        desk, rates, now = self._desk, self._rates, self._desk.now.mono
        if self.load >= kind is INVITE:
            return Verdict("load", self._retry(kind), user)
        account = desk.snapshot.accounts.get(user)
        line = account.line if account is not None else user
        bucket = self.lines.find(line) or self.lines.add(line, Bucket(rates.line_burst, now))
        if not bucket.take(now, sharing * rates.line_per_s, sharing * rates.line_burst):
            return Verdict("line", self._retry(kind) if kind >= REGISTER else 0, user)
        self.spending.took("line", line, sharing * rates.line_burst)
        if kind is REGISTER and not (self.pace.take(now) or (self._answers(data, flow) and self.pace.take(now, answers=True))):
            return Verdict("registers", self._retry(kind))
        return None

    def _part(self, data: bytes, user: str, sharing: int) -> Verdict | None:
        """A customer's part of a call or a transaction, or call for help; it is counted here where it is not taken."""
        if self.parts.take(data, user, sharing) or _asks_for_help(data):
            return None
        self.counts["parts", _LABELS[PART]] += 1
        return _PARTS

    def _answers(self, data: bytes, flow: Flow) -> bool:
        """Whether a REGISTER answers a challenge: its nonce was given to its source. That costs a MAC, so it is asked last."""
        nonce = nonce_in(data)
        return nonce is not None and self._desk.gave_nonce(nonce, flow)

    def _source(self, kind: Kind, data: bytes, flow: Flow, source: Bucket) -> Verdict | None:
        """A message that no live binding explains: a stranger's, or of a customer behind an address that others share."""
        if kind is PART and (_asks_for_help(data) or self.parts.take_named(data)):
            return None
        desk, rates, now = self._desk, self._rates, self._desk.now.mono
        lines = desk.location.flows_at(flow.host)
        is_stranger = not lines and not desk.settings.in_access_network(flow.host)
        if self.load >= kind is REGISTER and self._answers(data, flow):
            kind = INVITE  # so much has been done for it; it goes on when others begin
        if self.load >= kind and (is_stranger or kind >= REGISTER):
            return Verdict("load", 0 if is_stranger else self._retry(kind))
        burst = rates.source_burst + lines * rates.line_per_s
        if not source.take(now, rates.source_per_s + lines * rates.line_per_s, burst):
            return Verdict("source")
        self.spending.took("source", source_of(flow.host), burst)
        if not is_stranger:
            return None
        if self._take_as(kind) or (kind is REGISTER and self._answers(data, flow) and self._take_as(INVITE)):
            return None
        return Verdict("strangers")

    def _take_as(self, kind: Kind) -> bool:
        """Take a message off the rate of all strangers, as far down as its kind may."""
        rates, share = self._rates, self.pace.ease
        burst = share * rates.strangers_burst
        taken = self._strangers.take(self._desk.now.mono, share * rates.strangers_per_s, burst, _FLOORS[kind] * burst)
        if taken:
            self.spending.took("strangers", "", burst)
        return taken

    def spent_elsewhere(self, kind: str, whose: str, count: int) -> None:
        """Another worker of this node took so many messages off a budget."""
        rates, now = self._rates, self._desk.now.mono
        if kind == "strangers":
            self._strangers.owe(now, rates.strangers_per_s, rates.strangers_burst, count)
        elif kind == "source":
            lines = self._desk.location.flows_at(whose)
            bucket = self.sources.find(whose) or self._new_source(whose)
            bucket.owe(now, rates.source_per_s + lines * rates.line_per_s, rates.source_burst, count)
        elif kind == "parts":
            self.parts.spent_elsewhere(whose, count)
        else:
            bucket = self.lines.find(whose) or self.lines.add(whose, Bucket(rates.line_burst, now))
            bucket.owe(now, rates.line_per_s, rates.line_burst, count)

    def is_live(self, data: bytes) -> bool:
        """Whether it names a call of this node's."""
        return self.parts.names_call(data)

    def _retry(self, kind: Kind) -> int:
        """Seconds until this one should come again; nobody keeps step with others."""
        jitter = int.from_bytes(self._desk.new_token(2), "big") / 65_536
        if kind is REGISTER:
            return self.pace.again_after(self._desk.now.mono, jitter)
        return round(MIN_RETRY_S * (1 + jitter))

    # State

    def observe(self, signals: Signals) -> Load | None:
        """Take a sample; the new state when it changed. One step at a time, up at once and down after a calm while."""
        desk = self._desk
        now = desk.now.mono
        self.pace.observe(signals.lag_s + signals.wait_s, now)
        self._is_behind = signals.wait_s >= BEHIND_S
        if now - self._waited_at >= EMPTY_S:
            self._queued_since, self.has_queue = math.inf, False
            self._notable_s = EMPTY * self._queued_s
        self._tell_queue()
        pressure, bound = self._pressure(signals)
        self._high = self._high + 1 if pressure >= 1.0 else 0
        self._middling = self._middling + 1 if pressure >= CALM else 0
        if self._middling >= STEP_UP:
            self._high_at = now
        if self._high >= STEP_UP and self.load < bound:
            return self._change(Load(self.load + 1))
        if self.load > Load.CALM and now - self._high_at >= CALM_S and now - self.since >= CALM_S:
            return self._change(Load(self.load - 1))
        return None

    def _tell_queue(self) -> None:
        """Log that new calls stand in a queue from now on, or no more, and how many were refused out of it."""
        if self.has_queue is self._told_queue:
            return
        self._told_queue = self.has_queue
        if self.has_queue:
            self._desk.note("warning", "overload", state="begins", calls=self._calls.live)
        else:
            before, self._told_late = self._told_late, self.counts["late", "invite"]
            self._desk.note("info", "overload", state="over", calls=self._calls.live, refused=self._told_late - before)

    def _pressure(self, signals: Signals) -> tuple[float, Load]:
        """How near a signal is to its mark, 1.0 at it, and the state that it can bring about.

        Datagrams that wait in the kernel's buffer, or found it full, say that too much comes, and that is strangers'; a late
        loop or a full table that too much is being done.
        """
        busy = max(signals.lag_s / self._rates.lag_s, self._desk.transactions.share / FULL)
        too_much = signals.drops or max(signals.wait_s, signals.strangers_s) >= self._rates.lag_s
        if busy < 1.0 and too_much and self.load <= Load.OPTIONS:
            return 1.0, Load.OPTIONS
        return busy, Load.INVITE

    def _change(self, load: Load) -> Load:
        self.load, self.since, self._high = load, self._desk.now.mono, 0
        self.changes[load.name.lower()] += 1
        return load

    # Bytes back

    def may_send(self, flow: Flow, size: int) -> bool:
        """Whether so many bytes may go to whoever sent from this flow; they are taken off his credit.

        Only UDP sources can be forged; trunks, other nodes and live bindings have proven that they are there.
        """
        if flow.transport != "UDP":
            return True
        source, desk = self.source(flow), self._desk
        if source.trusted or self._is_ours(flow) or desk.location.accounts_at(flow, desk.now.utc_ms)[1]:
            return True
        if source.credit < size:
            return False
        source.credit -= size
        return True


def _asks_for_help(data: bytes) -> bool:
    """Whether it is a call for help, of a first line that says so."""
    return data.startswith(b"INVITE ") and may_be_emergency(data)
