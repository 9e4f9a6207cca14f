"""Transaction machines of RFC 3261 §17, with the Accepted state of RFC 6026 and the non-INVITE rules of RFC 4320.

Pure: events in, actions out. Times are monotonic seconds. Matching is in matching.py, timer values in timers.py; Timer C and
the choice of the next hop belong to the engine. Where a table below has no entry for a state and an event, the event is
absorbed: no action, no change of state. A machine never raises for anything that a peer sends in a well-formed message.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.sip.build import write_ack, write_response
from sipproxy.sip.timers import Timer

if TYPE_CHECKING:
    from sipproxy.sip.message import Request, Response
    from sipproxy.sip.timers import Timers

__all__ = [
    "Action",
    "InviteClient",
    "InviteServer",
    "NonInviteClient",
    "NonInviteServer",
    "PassUp",
    "Send",
    "State",
    "TimedOut",
    "TransportFailed",
]


class State(enum.Enum):
    CALLING = "calling"
    TRYING = "trying"
    PROCEEDING = "proceeding"
    ACCEPTED = "accepted"
    COMPLETED = "completed"
    CONFIRMED = "confirmed"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class Send:
    """Give these bytes to the transport: a client's to the next hop, a server's to where the top Via says (§18.2.2)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PassUp:
    """Give this message to the transaction user."""

    message: Request | Response


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The peer stayed silent: to a client's user like a 408 (§8.1.3.1), to a server's user "no ACK" or "too late"."""


@dataclass(frozen=True, slots=True)
class TransportFailed:
    """The transport could not send: to a client's user like a 503 (§8.1.3.1). A server machine stays in its state."""


Action = Send | PassUp | TimedOut | TransportFailed


class _Machine:
    """What the four machines share: the state and the deadlines."""

    __slots__ = ("_at", "_interval", "_reliable", "_request", "_timers", "state")

    def __init__(self, request: Request, state: State, *, timers: Timers, reliable: bool) -> None:
        self._request: Request | None = request
        self.state = state
        self._timers = timers
        self._reliable = reliable
        self._at: dict[Timer, float] = {}
        self._interval = timers.t1

    @property
    def request(self) -> Request:
        """The request, until nothing more can be made of it: of a server's until its first response, of a client's as long as
        it may be repeated or acknowledged."""
        assert self._request is not None
        return self._request

    @property
    def next_at(self) -> float | None:
        """When `fire` has something to do; None when only an event can move the machine."""
        return min(self._at.values(), default=None)

    def terminate(self) -> None:
        """Destroy the transaction at the user's wish: it has no deadline and absorbs everything."""
        self.state, self._at = State.TERMINATED, {}

    def _linger(self, state: State, timer: Timer, at: float) -> None:
        """Enter a state that only absorbs, until `timer` ends it."""
        self.state, self._at = state, {timer: at}

    def _due(self, now: float) -> set[Timer]:
        return {timer for timer, at in self._at.items() if at <= now}


class InviteClient(_Machine):
    """INVITE client transaction (RFC 3261 §17.1.1, figure 5; RFC 6026 §7.2, figure 4).

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    CALLING    start                             Send INVITE; A (unreliable), B
    CALLING    Timer A                           Send INVITE; A doubles
    CALLING    Timer B                           TimedOut                                     TERMINATED
    CALLING    transport failure                 TransportFailed                              TERMINATED
    CALLING    1xx                               PassUp                                       PROCEEDING
    PROCEEDING 1xx                               PassUp
    PROCEEDING cancelled                         B
    PROCEEDING Timer B                           TimedOut                                     TERMINATED
    both       2xx                               PassUp; M                                    ACCEPTED
    both       300-699, unreliable               Send ACK, PassUp; D                          COMPLETED
    both       300-699, reliable                 Send ACK, PassUp                             TERMINATED
    ACCEPTED   2xx                               PassUp
    ACCEPTED   Timer M                                                                        TERMINATED
    COMPLETED  300-699                           Send ACK
    COMPLETED  transport failure                 TransportFailed                              TERMINATED
    COMPLETED  Timer D                                                                        TERMINATED
    ========== ================================= ============================================ ==========

    A transport failure in PROCEEDING or ACCEPTED says nothing about this transaction: the INVITE has provably arrived.
    PROCEEDING lasts until the user's Timer C and CANCEL end it.
    """

    __slots__ = ("_started",)

    def __init__(self, request: Request, *, timers: Timers, reliable: bool) -> None:
        """`request` is the INVITE as sent, parsed: its `raw` goes out."""
        super().__init__(request, State.CALLING, timers=timers, reliable=reliable)
        self._started = False

    def start(self, now: float) -> list[Action]:
        """Send the INVITE. A second call does nothing."""
        if self._started or self.state is not State.CALLING:
            return []
        self._started = True
        self._at[Timer.B] = now + self._timers.b
        if not self._reliable:
            self._at[Timer.A] = now + self._interval  # §17.1.1.2: Timer A only over an unreliable transport.
        return [Send(self.request.raw)]

    def accept(self, now: float) -> None:
        """Begin in Accepted: a transaction of before a restart, whose INVITE was answered with a 2xx then."""
        self._started, self._request = True, None
        self._linger(State.ACCEPTED, Timer.M, now + self._timers.m)

    def receive(self, response: Response, now: float) -> list[Action]:
        """Take a response that matched this transaction."""
        status, state = response.status, self.state
        if state in (State.CALLING, State.PROCEEDING):
            return self._receive_first(response, now)
        if state is State.ACCEPTED and 200 <= status < 300:
            return [PassUp(response)]  # RFC 6026 §7.2: any further 2xx goes up, retransmitted or from another branch.
        if state is State.COMPLETED and status >= 300:
            # §17.1.1.2: "Any retransmissions of the final response ... MUST cause the ACK to be re-passed to the transport
            # layer". Built anew: a forking UAS side may answer with another To tag, which the ACK has to bear (§17.1.1.3).
            return [Send(write_ack(self.request, response))]
        return []

    def _receive_first(self, response: Response, now: float) -> list[Action]:
        status = response.status
        if status < 200:
            if self.state is State.CALLING:
                self.state, self._at = State.PROCEEDING, {}  # §17.1.1.2: no retransmission once a provisional came.
            return [PassUp(response)]
        if status < 300:
            self._linger(State.ACCEPTED, Timer.M, now + self._timers.m)
            self._request = None  # its ACK is the user's to write (§13.2.2.4)
            return [PassUp(response)]
        if self._reliable:
            self.terminate()  # §17.1.1.2: Timer D is zero over a reliable transport.
        else:
            self._linger(State.COMPLETED, Timer.D, now + self._timers.d)
        return [Send(write_ack(self.request, response)), PassUp(response)]

    def cancelled(self, now: float) -> list[Action]:
        """Note that the user has sent a CANCEL: without a final response within 64*T1 it ends with TimedOut.

        §9.1: the UAC "cannot rely on receiving a 487", and after 64*T1 considers the original transaction cancelled.
        """
        if self.state is State.PROCEEDING:
            self._at.setdefault(Timer.B, now + self._timers.b)
        return []

    def fire(self, now: float) -> list[Action]:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        due = self._due(now)
        if not due:
            return []
        if due == {Timer.A}:
            self._interval *= 2  # §17.1.1.2: doubles without T2 as its bound; Timer B ends it after seven requests.
            self._at[Timer.A] = now + self._interval
            return [Send(self.request.raw)]
        self.terminate()
        return [TimedOut()] if Timer.B in due else []

    def transport_failed(self, now: float) -> list[Action]:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        if self.state not in (State.CALLING, State.COMPLETED):
            return []
        self.terminate()  # §17.1.4
        return [TransportFailed()]


class NonInviteClient(_Machine):
    """Non-INVITE client transaction (RFC 3261 §17.1.2, figure 6).

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    TRYING     start                             Send request; E (unreliable), F
    TRYING     Timer E                           Send request; E doubles up to T2
    TRYING     1xx                               PassUp                                       PROCEEDING
    PROCEEDING Timer E                           Send request; E every T2
    PROCEEDING 1xx                               PassUp
    both       Timer F                           TimedOut                                     TERMINATED
    both       transport failure                 TransportFailed                              TERMINATED
    both       200-699, unreliable               PassUp; K                                    COMPLETED
    both       200-699, reliable                 PassUp                                       TERMINATED
    COMPLETED  Timer K                                                                        TERMINATED
    ========== ================================= ============================================ ==========
    """

    __slots__ = ("_started",)

    def __init__(self, request: Request, *, timers: Timers, reliable: bool) -> None:
        """`request` is the request as sent, parsed: its `raw` goes out."""
        super().__init__(request, State.TRYING, timers=timers, reliable=reliable)
        self._started = False

    def start(self, now: float) -> list[Action]:
        """Send the request. A second call does nothing."""
        if self._started or self.state is not State.TRYING:
            return []
        self._started = True
        self._at[Timer.F] = now + self._timers.f
        if not self._reliable:
            self._at[Timer.E] = now + self._interval  # §17.1.2.2: Timer E only over an unreliable transport.
        return [Send(self.request.raw)]

    def receive(self, response: Response, now: float) -> list[Action]:
        """Take a response that matched this transaction."""
        if self.state in (State.COMPLETED, State.TERMINATED):
            return []  # §17.1.2.2: a retransmitted final response is absorbed.
        if response.status < 200:
            self.state, self._interval = State.PROCEEDING, self._timers.t2  # §17.1.2.2: from here every T2.
        elif self._reliable:
            self.terminate()  # §17.1.2.2: Timer K is zero over a reliable transport.
        else:
            self._linger(State.COMPLETED, Timer.K, now + self._timers.k)
        return [PassUp(response)]

    def fire(self, now: float) -> list[Action]:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        due = self._due(now)
        if not due:
            return []
        if due == {Timer.E}:
            self._interval = min(2 * self._interval, self._timers.t2)  # §17.1.2.2: doubles up to T2.
            self._at[Timer.E] = now + self._interval
            return [Send(self.request.raw)]
        self.terminate()
        return [TimedOut()] if Timer.F in due else []

    def transport_failed(self, now: float) -> list[Action]:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        if self.state not in (State.TRYING, State.PROCEEDING):
            return []
        self.terminate()  # §17.1.4
        return [TransportFailed()]


class InviteServer(_Machine):
    """INVITE server transaction (RFC 3261 §17.2.1, figure 7; RFC 6026 §7.1, figure 5).

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    PROCEEDING 200 ms without a response         Send 100
    PROCEEDING INVITE                            Send the last provisional response, if any
    PROCEEDING respond 1xx                       Send
    PROCEEDING respond 2xx                       Send; L                                      ACCEPTED
    PROCEEDING respond 300-699                   Send; G (unreliable), H                      COMPLETED
    ACCEPTED   ACK                               PassUp
    ACCEPTED   respond 2xx                       Send
    ACCEPTED   Timer L                                                                        TERMINATED
    COMPLETED  INVITE                            Send the final response
    COMPLETED  Timer G                           Send the final response; G doubles up to T2
    COMPLETED  Timer H                           TimedOut                                     TERMINATED
    COMPLETED  ACK, unreliable                   I                                            CONFIRMED
    COMPLETED  ACK, reliable                                                                  TERMINATED
    CONFIRMED  Timer I                                                                        TERMINATED
    all three  transport failure                 TransportFailed
    ========== ================================= ============================================ ==========

    RFC 6026 §7.1: a transport failure does not end it, else the INVITE's next retransmission would be a new call.
    PROCEEDING lasts until the user answers.
    """

    __slots__ = ("_response",)

    def __init__(self, request: Request, *, timers: Timers, reliable: bool, now: float) -> None:
        """`request` is the INVITE as received, which the creator has already in hand: nothing is passed up for it."""
        super().__init__(request, State.PROCEEDING, timers=timers, reliable=reliable)
        self._response = b""
        self._at[Timer.TRYING] = now + timers.invite_trying

    def terminate(self) -> None:
        """As for every machine; its call may go on with it for hours."""
        super().terminate()
        self._response = b""

    @property
    def last_response(self) -> bytes:
        """What was sent last; b"" for nothing yet, and in Accepted over an unreliable transport."""
        return self._response

    def receive(self, request: Request, now: float) -> list[Action]:
        """Take a retransmitted INVITE or an ACK that matched this transaction."""
        method, state = request.method, self.state
        if method == b"INVITE" and state in (State.PROCEEDING, State.COMPLETED):
            return [Send(self._response)] if self._response else []
        if method == b"ACK" and state is State.COMPLETED:
            if self._reliable:
                self.terminate()  # §17.2.1: Timer I is zero over a reliable transport.
            else:
                self._linger(State.CONFIRMED, Timer.I, now + self._timers.i)
        elif method == b"ACK" and state is State.ACCEPTED:
            return [PassUp(request)]  # RFC 6026 §7.1: an ACK that arrives in Accepted goes to the user.
        return []  # RFC 6026 §7.1: a retransmitted INVITE in Accepted is absorbed; the 2xx is the UAS's to repeat.

    def respond(self, status: int, data: bytes, now: float) -> list[Action]:
        """Send the user's response, `data` with `status`; absorbed where the state has no place for it."""
        if self.state is State.ACCEPTED and 200 <= status < 300:
            self._response = data if self._reliable else b""
            return [Send(data)]  # RFC 6026 §7.1: every further 2xx is sent.
        if self.state is not State.PROCEEDING:
            return []
        self._at, self._request = {}, None
        if status < 200:
            self._response = data
        elif status < 300:
            self._response = data if self._reliable else b""  # who lost it gets it from the UAS: none is repeated from here
            self._linger(State.ACCEPTED, Timer.L, now + self._timers.l)
        else:
            self._response = data
            self._linger(State.COMPLETED, Timer.H, now + self._timers.h)
            if not self._reliable:
                self._at[Timer.G] = now + self._interval
        return [Send(data)]

    def fire(self, now: float) -> list[Action]:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        due = self._due(now)
        if not due:
            return []
        if due == {Timer.TRYING}:
            # §17.2.1: "The server transaction MUST generate a 100 (Trying) response unless it knows that the TU will
            # generate a provisional or final response within 200 ms".
            self._at, self._response = {}, write_response(self.request, 100)
            self._request = None
            return [Send(self._response)]
        if due == {Timer.G}:
            self._interval = min(2 * self._interval, self._timers.t2)
            self._at[Timer.G] = now + self._interval
            return [Send(self._response)]
        self.terminate()
        return [TimedOut()] if Timer.H in due else []

    def transport_failed(self, now: float) -> list[Action]:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        return [] if self.state in (State.CONFIRMED, State.TERMINATED) else [TransportFailed()]


class NonInviteServer(_Machine):
    """Non-INVITE server transaction (RFC 3261 §17.2.2, figure 8) with the rules of RFC 4320 §4.

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    TRYING     respond 100, allowed by now       Send                                         PROCEEDING
    TRYING     Timer E of the client is at T2    Send 100                                     PROCEEDING
    PROCEEDING request                           Send the 100
    PROCEEDING respond 100                       Send
    both       Timer F of the client has fired   TimedOut                                     TERMINATED
    both       respond 200-699, unreliable       Send, but no 408; J                          COMPLETED
    both       respond 200-699, reliable         Send, but no 408                             TERMINATED
    COMPLETED  request                           Send the final response
    COMPLETED  Timer J                                                                        TERMINATED
    all three  transport failure                 TransportFailed
    ========== ================================= ============================================ ==========

    As in RFC 6026 §7.1 a transport failure does not end it, else the next retransmission would be taken for a new request.
    """

    __slots__ = ("_quiet_until", "_response")

    def __init__(self, request: Request, *, timers: Timers, reliable: bool, now: float) -> None:
        """`request` is the request as received, which the creator has already in hand: nothing is passed up for it."""
        super().__init__(request, State.TRYING, timers=timers, reliable=reliable)
        self._response = b""
        trying_at = now + timers.non_invite_trying
        # RFC 4320 §4.1: no 100 over an unreliable transport before the client's Timer E was reset to T2.
        self._quiet_until = now if reliable else trying_at
        self._at = {Timer.TRYING: trying_at, Timer.F: now + timers.f}

    def receive(self, request: Request, now: float) -> list[Action]:  # noqa: ARG002  one signature for both servers
        """Take a retransmission that matched this transaction."""
        if self.state in (State.PROCEEDING, State.COMPLETED) and self._response:
            return [Send(self._response)]
        return []

    def respond(self, status: int, data: bytes, now: float) -> list[Action]:
        """Send the user's response, `data` with `status`; absorbed where the state or RFC 4320 has no place for it."""
        if self.state not in (State.TRYING, State.PROCEEDING):
            return []
        if status < 200:
            # RFC 4320 §4.1: no provisional but 100, and that not too early: the timer sends it then.
            return self._trying(data) if status == 100 and now >= self._quiet_until else []
        # RFC 4320 §4.2: "MUST NOT send a response with Status-Code of 408 to a non-INVITE request". The transaction stays
        # to absorb retransmissions all the same.
        self._response, self._request = (b"" if status == 408 else data), None
        if self._reliable:
            self.terminate()  # §17.2.2: Timer J is zero over a reliable transport.
        else:
            self._linger(State.COMPLETED, Timer.J, now + self._timers.j)
        return [Send(data)] if self._response else []

    def fire(self, now: float) -> list[Action]:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        due = self._due(now)
        if not due:
            return []
        if due == {Timer.TRYING}:
            # RFC 4320 §4.1: "MUST respond to a non-INVITE request with a Status-Code of 100 if it has not otherwise
            # responded after the amount of time it takes a client transaction's Timer E to be reset to T2".
            return self._trying(write_response(self.request, 100))
        self.terminate()
        return [TimedOut()] if Timer.F in due else []

    def transport_failed(self, now: float) -> list[Action]:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        return [] if self.state is State.TERMINATED else [TransportFailed()]

    def _trying(self, data: bytes) -> list[Action]:
        self.state, self._response, self._request = State.PROCEEDING, data, None
        self._at.pop(Timer.TRYING, None)
        return [Send(data)]
