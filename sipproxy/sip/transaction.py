"""Transaction machines of RFC 3261 §17, with the Accepted state of RFC 6026 and the non-INVITE rules of RFC 4320.

Pure: events in, what is to be done out. Times are monotonic seconds. Matching is in matching.py, timer values in timers.py;
Timer C and the choice of the next hop belong to the engine. Where a table below has no entry for a state and an event, the
event is absorbed: nothing to do, no change of state. A machine never raises for anything that a peer sends in a well-formed
message.

Each event returns what is to be done, in this order, as the sum of:

- `SEND`: give the machine's `out`, or the response just handed in, to the transport: a client's to the next hop, a server's to
  where the top Via says (§18.2.2);
- `PASS_UP`: give the message that came to the transaction user;
- `TIMED_OUT`: the peer stayed silent: to a client's user like a 408 (§8.1.3.1), to a server's user "no ACK" or "too late";
- `FAILED`: the transport could not send: to a client's user like a 503 (§8.1.3.1). A server machine stays in its state.
"""

from __future__ import annotations

import enum
from math import inf
from typing import TYPE_CHECKING, Final

from sipproxy.sip.build import Sent, whole, write_ack, write_response
from sipproxy.sip.flow import LOOP

if TYPE_CHECKING:
    from sipproxy.sip.message import Request, Response
    from sipproxy.sip.timers import Timers

__all__ = [
    "FAILED",
    "PASS_UP",
    "RELIABLE",
    "SEND",
    "TIMED_OUT",
    "InviteClient",
    "InviteServer",
    "NonInviteClient",
    "NonInviteServer",
    "State",
]

SEND: Final = 1
PASS_UP: Final = 2
TIMED_OUT: Final = 4
FAILED: Final = 8


class State(enum.Enum):
    CALLING = "calling"
    TRYING = "trying"
    PROCEEDING = "proceeding"
    ACCEPTED = "accepted"
    COMPLETED = "completed"
    CONFIRMED = "confirmed"
    TERMINATED = "terminated"


CALLING, TRYING, PROCEEDING = State.CALLING, State.TRYING, State.PROCEEDING
ACCEPTED, COMPLETED, CONFIRMED, TERMINATED = State.ACCEPTED, State.COMPLETED, State.CONFIRMED, State.TERMINATED
FORGOTTEN = Sent(b"INVITE", b"")
RELIABLE = frozenset({"TCP", "TLS", LOOP})


class _Machine:
    """What the four machines share: the state and the deadlines. A call makes one of each, and each makes all of itself: a
    constructor that they shared would take twice as long.

    `again_at` is when something is sent again, or 100 for the first time; `end_at` when the state ends; infinite for never.
    """

    __slots__ = ("_interval", "_reliable", "_timers", "again_at", "end_at", "out", "state")

    state: State
    again_at: float
    end_at: float
    out: bytes
    """What is to be sent, or was sent last: of a server b"" before its first response."""
    _timers: Timers
    _reliable: bool
    _interval: float

    @property
    def next_at(self) -> float | None:
        """When `fire` has something to do; None when only an event can move the machine."""
        at = min(self.again_at, self.end_at)
        return at if at < inf else None

    def terminate(self) -> None:
        """Destroy the transaction at the user's wish: it has no deadline and absorbs everything."""
        self.state, self.again_at, self.end_at = TERMINATED, inf, inf


class InviteClient(_Machine):
    """INVITE client transaction (RFC 3261 §17.1.1, figure 5; RFC 6026 §7.2, figure 4).

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    CALLING    start                             Send INVITE; A (unreliable), B
    CALLING    Timer A                           Send INVITE; A doubles
    CALLING    Timer B                           TIMED_OUT                                    TERMINATED
    CALLING    transport failure                 FAILED                                       TERMINATED
    CALLING    1xx                               PASS_UP                                      PROCEEDING
    PROCEEDING 1xx                               PASS_UP
    PROCEEDING cancelled                         B
    PROCEEDING Timer B                           TIMED_OUT                                    TERMINATED
    both       2xx                               PASS_UP; M                                   ACCEPTED
    both       300-699, unreliable               Send ACK, PASS_UP; D                         COMPLETED
    both       300-699, reliable                 Send ACK, PASS_UP                            TERMINATED
    ACCEPTED   2xx                               PASS_UP
    ACCEPTED   Timer M                                                                        TERMINATED
    COMPLETED  300-699                           Send ACK
    COMPLETED  transport failure                 FAILED                                       TERMINATED
    COMPLETED  Timer D                                                                        TERMINATED
    ========== ================================= ============================================ ==========

    A transport failure in PROCEEDING or ACCEPTED says nothing about this transaction: the INVITE has provably arrived.
    PROCEEDING lasts until the user's Timer C and CANCEL end it.
    """

    __slots__ = ("_sent", "_started")

    def __init__(self, sent: Request | Sent, timers: Timers, transport: str) -> None:
        """`sent` is the INVITE as it goes out."""
        self.state, self._timers, self._reliable = CALLING, timers, transport in RELIABLE
        self.again_at, self.end_at, self._interval = inf, inf, timers.t1
        self._sent, self.out = sent, sent.raw
        self._started = False

    def start(self, now: float) -> int:
        """Send the INVITE. A second call does nothing."""
        if self._started or self.state is not CALLING:
            return 0
        self._started = True
        self.end_at = now + self._timers.b
        if not self._reliable:
            self.again_at = now + self._interval  # §17.1.1.2: Timer A only over an unreliable transport.
        return SEND

    def accept(self, now: float) -> None:
        """Begin in Accepted: a transaction of before a restart, whose INVITE was answered with a 2xx then."""
        self._started = True
        self._accepted(now)

    def _accepted(self, now: float) -> None:
        self.state, self.again_at, self.end_at = ACCEPTED, inf, now + self._timers.m
        self._sent, self.out = FORGOTTEN, b""  # its ACK is the user's to write (§13.2.2.4)

    def receive(self, response: Response, now: float) -> int:
        """Take a response that matched this transaction."""
        status, state = response.status, self.state
        if state is PROCEEDING or state is CALLING:
            if status < 200:
                if state is CALLING:
                    # §17.1.1.2: no retransmission once a provisional came.
                    self.state, self.again_at, self.end_at = PROCEEDING, inf, inf
                return PASS_UP
            if status < 300:
                self._accepted(now)
                return PASS_UP
            self.out = write_ack(whole(self._sent), response)
            if self._reliable:
                self.terminate()  # §17.1.1.2: Timer D is zero over a reliable transport.
            else:
                self.state, self.again_at, self.end_at = COMPLETED, inf, now + self._timers.d
            return SEND | PASS_UP
        if state is ACCEPTED and 200 <= status < 300:
            return PASS_UP  # RFC 6026 §7.2: any further 2xx goes up, retransmitted or from another branch.
        if state is COMPLETED and status >= 300:
            # §17.1.1.2: "Any retransmissions of the final response ... MUST cause the ACK to be re-passed to the transport
            # layer". Built anew: a forking UAS side may answer with another To tag, which the ACK has to bear (§17.1.1.3).
            self.out = write_ack(whole(self._sent), response)
            return SEND
        return 0

    def cancelled(self, now: float) -> int:
        """Note that the user has sent a CANCEL: without a final response within 64*T1 it ends with TIMED_OUT.

        §9.1: the UAC "cannot rely on receiving a 487", and after 64*T1 considers the original transaction cancelled.
        """
        if self.state is PROCEEDING and self.end_at == inf:
            self.end_at = now + self._timers.b
        return 0

    def fire(self, now: float) -> int:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        if self.end_at <= now:
            silent = self.state is CALLING or self.state is PROCEEDING  # Timer B; in Accepted M, in Completed D
            self.terminate()
            return TIMED_OUT if silent else 0
        if self.again_at > now:
            return 0
        self._interval *= 2  # §17.1.1.2: doubles without T2 as its bound; Timer B ends it after seven requests.
        self.again_at = now + self._interval
        return SEND

    def transport_failed(self, now: float) -> int:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        if self.state is not CALLING and self.state is not COMPLETED:
            return 0
        self.terminate()  # §17.1.4
        return FAILED


class NonInviteClient(_Machine):
    """Non-INVITE client transaction (RFC 3261 §17.1.2, figure 6).

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    TRYING     start                             Send request; E (unreliable), F
    TRYING     Timer E                           Send request; E doubles up to T2
    TRYING     1xx                               PASS_UP                                      PROCEEDING
    PROCEEDING Timer E                           Send request; E every T2
    PROCEEDING 1xx                               PASS_UP
    both       Timer F                           TIMED_OUT                                    TERMINATED
    both       transport failure                 FAILED                                       TERMINATED
    both       200-699, unreliable               PASS_UP; K                                   COMPLETED
    both       200-699, reliable                 PASS_UP                                      TERMINATED
    COMPLETED  Timer K                                                                        TERMINATED
    ========== ================================= ============================================ ==========
    """

    __slots__ = ("_started",)

    def __init__(self, sent: Request | Sent, timers: Timers, transport: str) -> None:
        """`sent` is the request as it goes out."""
        self.state, self._timers, self._reliable = TRYING, timers, transport in RELIABLE
        self.again_at, self.end_at, self._interval = inf, inf, timers.t1
        self.out = sent.raw
        self._started = False

    def start(self, now: float) -> int:
        """Send the request. A second call does nothing."""
        if self._started or self.state is not TRYING:
            return 0
        self._started = True
        self.end_at = now + self._timers.f
        if not self._reliable:
            self.again_at = now + self._interval  # §17.1.2.2: Timer E only over an unreliable transport.
        return SEND

    def receive(self, response: Response, now: float) -> int:
        """Take a response that matched this transaction."""
        if self.state is COMPLETED or self.state is TERMINATED:
            return 0  # §17.1.2.2: a retransmitted final response is absorbed.
        if response.status < 200:
            self.state, self._interval = PROCEEDING, self._timers.t2  # §17.1.2.2: from here every T2.
            return PASS_UP
        self.out = b""
        if self._reliable:
            self.terminate()  # §17.1.2.2: Timer K is zero over a reliable transport.
        else:
            self.state, self.again_at, self.end_at = COMPLETED, inf, now + self._timers.k
        return PASS_UP

    def fire(self, now: float) -> int:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        if self.end_at <= now:
            silent = self.state is not COMPLETED  # Timer F; in Completed K
            self.terminate()
            return TIMED_OUT if silent else 0
        if self.again_at > now:
            return 0
        self._interval = min(2 * self._interval, self._timers.t2)  # §17.1.2.2: doubles up to T2.
        self.again_at = now + self._interval
        return SEND

    def transport_failed(self, now: float) -> int:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        if self.state is not TRYING and self.state is not PROCEEDING:
            return 0
        self.terminate()  # §17.1.4
        return FAILED


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
    ACCEPTED   ACK                               PASS_UP
    ACCEPTED   respond 2xx                       Send
    ACCEPTED   Timer L                                                                        TERMINATED
    COMPLETED  INVITE                            Send the final response
    COMPLETED  Timer G                           Send the final response; G doubles up to T2
    COMPLETED  Timer H                           TIMED_OUT                                    TERMINATED
    COMPLETED  ACK, unreliable                   I                                            CONFIRMED
    COMPLETED  ACK, reliable                                                                  TERMINATED
    CONFIRMED  Timer I                                                                        TERMINATED
    all three  transport failure                 FAILED
    ========== ================================= ============================================ ==========

    RFC 6026 §7.1: a transport failure does not end it, else the INVITE's next retransmission would be a new call.
    PROCEEDING lasts until the user answers.
    """

    __slots__ = ("_request",)

    def __init__(self, request: Request, timers: Timers, transport: str, now: float) -> None:
        """`request` is the INVITE as received, which the creator has already in hand: nothing is passed up for it."""
        self.state, self._timers, self._reliable = PROCEEDING, timers, transport in RELIABLE
        self.again_at, self.end_at, self._interval = now + timers.invite_trying, inf, timers.t1
        self.out = b""
        self._request: Request | None = request  # until the first response

    def terminate(self) -> None:
        """As for every machine; its call may go on with it for hours."""
        super().terminate()
        self.out = b""

    def receive(self, request: Request, now: float) -> int:
        """Take a retransmitted INVITE or an ACK that matched this transaction."""
        method, state = request.method, self.state
        if method == b"INVITE" and (state is PROCEEDING or state is COMPLETED):
            return SEND if self.out else 0
        if method == b"ACK" and state is COMPLETED:
            if self._reliable:
                self.terminate()  # §17.2.1: Timer I is zero over a reliable transport.
            else:
                self.state, self.again_at, self.end_at = CONFIRMED, inf, now + self._timers.i
        elif method == b"ACK" and state is ACCEPTED:
            return PASS_UP  # RFC 6026 §7.1: an ACK that arrives in Accepted goes to the user.
        return 0  # RFC 6026 §7.1: a retransmitted INVITE in Accepted is absorbed; the 2xx is the UAS's to repeat.

    def respond(self, status: int, data: bytes, now: float) -> int:
        """Send the user's response, `data` with `status`; absorbed where the state has no place for it."""
        if self.state is not PROCEEDING:
            if self.state is not ACCEPTED or not 200 <= status < 300:
                return 0
            self.out = data if self._reliable else b""
            return SEND  # RFC 6026 §7.1: every further 2xx is sent.
        self.out, self.again_at, self._request = data, inf, None
        if status >= 300:
            self.state, self.end_at = COMPLETED, now + self._timers.h
            if not self._reliable:
                self.again_at = now + self._interval
        elif status >= 200:
            self.state, self.end_at = ACCEPTED, now + self._timers.l
            if not self._reliable:
                self.out = b""  # who lost it gets it from the UAS: none is repeated from here
        return SEND

    def fire(self, now: float) -> int:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        if self.end_at <= now:
            silent = self.state is COMPLETED  # Timer H; in Accepted L, in Confirmed I
            self.terminate()
            return TIMED_OUT if silent else 0
        if self.again_at > now:
            return 0
        if self._request is not None:
            # §17.2.1: "The server transaction MUST generate a 100 (Trying) response unless it knows that the TU will
            # generate a provisional or final response within 200 ms".
            self.again_at, self.out, self._request = inf, write_response(self._request, 100), None
        else:
            self._interval = min(2 * self._interval, self._timers.t2)  # Timer G
            self.again_at = now + self._interval
        return SEND

    def transport_failed(self, now: float) -> int:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        return 0 if self.state is CONFIRMED or self.state is TERMINATED else FAILED


class NonInviteServer(_Machine):
    """Non-INVITE server transaction (RFC 3261 §17.2.2, figure 8) with the rules of RFC 4320 §4.

    ========== ================================= ============================================ ==========
    state      event                             actions                                      next state
    ========== ================================= ============================================ ==========
    TRYING     respond 100, allowed by now       Send                                         PROCEEDING
    TRYING     Timer E of the client is at T2    Send 100                                     PROCEEDING
    PROCEEDING request                           Send the 100
    PROCEEDING respond 100                       Send
    both       Timer F of the client has fired   TIMED_OUT                                    TERMINATED
    both       respond 200-699, unreliable       Send, but no 408; J                          COMPLETED
    both       respond 200-699, reliable         Send, but no 408                             TERMINATED
    COMPLETED  request                           Send the final response
    COMPLETED  Timer J                                                                        TERMINATED
    all three  transport failure                 FAILED
    ========== ================================= ============================================ ==========

    As in RFC 6026 §7.1 a transport failure does not end it, else the next retransmission would be taken for a new request.
    """

    __slots__ = ("_quiet_until", "_request")

    def __init__(self, request: Request, timers: Timers, transport: str, now: float) -> None:
        """`request` is the request as received, which the creator has already in hand: nothing is passed up for it."""
        self.state, self._timers, self._reliable = TRYING, timers, transport in RELIABLE
        self.again_at, self.end_at, self._interval = now + timers.non_invite_trying, now + timers.f, timers.t1
        self.out = b""
        self._request: Request | None = request  # until the first response
        # RFC 4320 §4.1: no 100 over an unreliable transport before the client's Timer E was reset to T2.
        self._quiet_until = now if self._reliable else self.again_at

    def receive(self, request: Request, now: float) -> int:  # noqa: ARG002  one signature for both servers
        """Take a retransmission that matched this transaction."""
        return SEND if self.out and (self.state is PROCEEDING or self.state is COMPLETED) else 0

    def respond(self, status: int, data: bytes, now: float) -> int:
        """Send the user's response, `data` with `status`; absorbed where the state or RFC 4320 has no place for it."""
        if self.state is not TRYING and self.state is not PROCEEDING:
            return 0
        if status < 200:
            # RFC 4320 §4.1: no provisional but 100, and that not too early: the timer sends it then.
            return self._trying(data) if status == 100 and now >= self._quiet_until else 0
        # RFC 4320 §4.2: "MUST NOT send a response with Status-Code of 408 to a non-INVITE request". The transaction stays
        # to absorb retransmissions all the same.
        self.out, self._request = (b"" if status == 408 else data), None
        if self._reliable:
            self.terminate()  # §17.2.2: Timer J is zero over a reliable transport.
        else:
            self.state, self.again_at, self.end_at = COMPLETED, inf, now + self._timers.j
        return SEND if self.out else 0

    def fire(self, now: float) -> int:
        """Run what is due at `now`. Early, late and repeated calls are harmless."""
        if self.end_at <= now:
            silent = self.state is not COMPLETED  # Timer F of the client; in Completed J
            self.terminate()
            return TIMED_OUT if silent else 0
        # RFC 4320 §4.1: "MUST respond to a non-INVITE request with a Status-Code of 100 if it has not otherwise responded
        # after the amount of time it takes a client transaction's Timer E to be reset to T2".
        return self._trying(write_response(self._request, 100)) if self._request is not None and self.again_at <= now else 0

    def transport_failed(self, now: float) -> int:  # noqa: ARG002  one signature for the four machines
        """Take the transport's word that what this machine sent last did not go out."""
        return 0 if self.state is TERMINATED else FAILED

    def _trying(self, data: bytes) -> int:
        self.state, self.out, self.again_at, self._request = PROCEEDING, data, inf, None
        return SEND
