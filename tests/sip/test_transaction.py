"""The four transaction machines: every state against every event, and the rules of RFC 3261 §17, RFC 6026 and RFC 4320."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from transaction_samples import make_request, make_response

from sipproxy.sip.headers import CSeq
from sipproxy.sip.message import Request, Response, parse_message
from sipproxy.sip.timers import Timers
from sipproxy.sip.transaction import (
    FAILED,
    PASS_UP,
    SEND,
    TIMED_OUT,
    InviteClient,
    InviteServer,
    NonInviteClient,
    NonInviteServer,
    State,
)

Machine = InviteClient | NonInviteClient | InviteServer | NonInviteServer
Event = Callable[[Machine, float], str]  # what is to be done, in words

TIMERS = Timers()
INVITE, OPTIONS = make_request(), make_request(b"OPTIONS")
ACK = make_request(b"ACK")
INVITE_RESPONSES = {status: make_response(INVITE, status) for status in (100, 180, 200, 302, 486, 603)}
OPTIONS_RESPONSES = {status: make_response(OPTIONS, status) for status in (100, 180, 200, 302, 408, 486, 603)}


def make(kind: type[Machine], *, reliable: bool) -> Machine:
    transport = "TCP" if reliable else "UDP"
    if kind is InviteClient:
        return InviteClient(INVITE, TIMERS, transport)
    if kind is NonInviteClient:
        return NonInviteClient(OPTIONS, TIMERS, transport)
    if kind is InviteServer:
        return InviteServer(INVITE, TIMERS, transport, 0.0)
    return NonInviteServer(OPTIONS, TIMERS, transport, 0.0)


def name_of(message: Request | Response) -> str:
    return str(message.status) if isinstance(message, Response) else message.method.decode()


def words(machine: Machine, todo: int, message: Request | Response | None = None, *, data: bytes = b"") -> str:
    """What is to be done as in the tables: `send INVITE`, `send 486`, `up 180`, `timed out`, `failed`."""
    found = []
    if todo & SEND:
        found.append(f"send {name_of(parse_message(data or machine.out))}")
    if todo & PASS_UP:
        assert message is not None
        found.append(f"up {name_of(message)}")
    found += [word for flag, word in ((TIMED_OUT, "timed out"), (FAILED, "failed")) if todo & flag]
    return ", ".join(found)


def receives(message: Request | Response) -> Event:
    return lambda machine, now: words(machine, machine.receive(message, now), message)  # type: ignore[arg-type]


def responds(status: int, request: Request) -> Event:
    data = make_response(request, status).raw
    return lambda machine, now: words(machine, machine.respond(status, data, now), data=data)  # type: ignore[union-attr]


def fires(_after: float = 0.0) -> Event:
    return lambda machine, now: words(machine, machine.fire(now))


def starts(machine: Machine, now: float) -> str:
    return words(machine, machine.start(now))  # type: ignore[union-attr]


def cancels(machine: Machine, now: float) -> str:
    return words(machine, machine.cancelled(now))  # type: ignore[union-attr]


def fails(machine: Machine, now: float) -> str:
    return words(machine, machine.transport_failed(now))


def terminates(machine: Machine, _now: float) -> str:
    machine.terminate()
    return ""


@dataclass
class Plan:
    """How to reach each state, the events there are, and what they do: state, event -> actions, next state."""

    kind: type[Machine]
    reach: dict[State, list[tuple[Event, float]]]
    events: dict[str, Event]
    table: dict[tuple[State, str], tuple[str, State]]
    reliable: dict[tuple[State, str], tuple[str, State]] = field(default_factory=dict)  # where it differs
    unreachable_reliable: tuple[State, ...] = ()


def over_states(
    states: tuple[State, ...], rows: dict[str, tuple[str, State | None]]
) -> dict[tuple[State, str], tuple[str, State]]:
    return {(state, event): (actions, after or state) for state in states for event, (actions, after) in rows.items()}


_C, _T, _P, _A = State.CALLING, State.TRYING, State.PROCEEDING, State.ACCEPTED
_D, _F, _X = State.COMPLETED, State.CONFIRMED, State.TERMINATED
LATE = 1000.0  # seconds after which every timer of a state is due
IR, OR = INVITE_RESPONSES, OPTIONS_RESPONSES

PLANS = [
    Plan(
        InviteClient,
        reach={
            _C: [(starts, 0)],
            _P: [(starts, 0), (receives(IR[180]), 0)],
            _A: [(starts, 0), (receives(IR[200]), 0)],
            _D: [(starts, 0), (receives(IR[486]), 0)],
            _X: [(starts, 0), (fires(), LATE)],
        },
        events={
            "start": starts,
            "100": receives(IR[100]),
            "180": receives(IR[180]),
            "200": receives(IR[200]),
            "302": receives(IR[302]),
            "486": receives(IR[486]),
            "603": receives(IR[603]),
            "cancelled": cancels,
            "fire late": fires(),
            "failure": fails,
            "terminate": terminates,
        },
        table={
            **over_states((_C, _P), {"100": ("up 100", _P), "180": ("up 180", _P), "200": ("up 200", _A)}),
            **over_states((_C, _P), {f"{s}": (f"send ACK, up {s}", _D) for s in (302, 486, 603)}),
            (_C, "fire late"): ("timed out", _X),
            (_C, "failure"): ("failed", _X),
            (_A, "200"): ("up 200", _A),
            (_A, "fire late"): ("", _X),
            **over_states((_D,), {f"{s}": ("send ACK", None) for s in (302, 486, 603)}),
            (_D, "fire late"): ("", _X),
            (_D, "failure"): ("failed", _X),
            **over_states((_C, _P, _A, _D), {"terminate": ("", _X)}),
        },
        reliable=over_states((_C, _P), {f"{s}": (f"send ACK, up {s}", _X) for s in (302, 486, 603)}),
        unreachable_reliable=(_D,),
    ),
    Plan(
        NonInviteClient,
        reach={
            _T: [(starts, 0)],
            _P: [(starts, 0), (receives(OR[100]), 0)],
            _D: [(starts, 0), (receives(OR[200]), 0)],
            _X: [(starts, 0), (fires(), LATE)],
        },
        events={
            "start": starts,
            "100": receives(OR[100]),
            "180": receives(OR[180]),
            "200": receives(OR[200]),
            "408": receives(OR[408]),
            "603": receives(OR[603]),
            "fire late": fires(),
            "failure": fails,
            "terminate": terminates,
        },
        table={
            **over_states((_T, _P), {"100": ("up 100", _P), "180": ("up 180", _P)}),
            **over_states((_T, _P), {f"{s}": (f"up {s}", _D) for s in (200, 408, 603)}),
            **over_states((_T, _P), {"fire late": ("timed out", _X), "failure": ("failed", _X)}),
            (_D, "fire late"): ("", _X),
            **over_states((_T, _P, _D), {"terminate": ("", _X)}),
        },
        reliable=over_states((_T, _P), {f"{s}": (f"up {s}", _X) for s in (200, 408, 603)}),
        unreachable_reliable=(_D,),
    ),
    Plan(
        InviteServer,
        reach={
            _P: [(responds(180, INVITE), 0)],
            _A: [(responds(200, INVITE), 0)],
            _D: [(responds(486, INVITE), 0)],
            _F: [(responds(486, INVITE), 0), (receives(ACK), 0)],
            _X: [(responds(486, INVITE), 0), (fires(), LATE)],
        },
        events={
            "INVITE": receives(INVITE),
            "ACK": receives(ACK),
            "OPTIONS": receives(OPTIONS),
            "respond 100": responds(100, INVITE),
            "respond 180": responds(180, INVITE),
            "respond 200": responds(200, INVITE),
            "respond 486": responds(486, INVITE),
            "respond 603": responds(603, INVITE),
            "fire late": fires(),
            "failure": fails,
            "terminate": terminates,
        },
        table={
            (_P, "INVITE"): ("send 180", _P),
            (_P, "respond 100"): ("send 100", _P),
            (_P, "respond 180"): ("send 180", _P),
            (_P, "respond 200"): ("send 200", _A),
            (_P, "respond 486"): ("send 486", _D),
            (_P, "respond 603"): ("send 603", _D),
            (_A, "ACK"): ("up ACK", _A),
            (_A, "respond 200"): ("send 200", _A),
            (_A, "fire late"): ("", _X),
            (_D, "INVITE"): ("send 486", _D),
            (_D, "ACK"): ("", _F),
            (_D, "fire late"): ("timed out", _X),
            (_F, "fire late"): ("", _X),
            **over_states((_P, _A, _D), {"failure": ("failed", None)}),
            **over_states((_P, _A, _D, _F), {"terminate": ("", _X)}),
        },
        reliable={(_D, "ACK"): ("", _X)},
        unreachable_reliable=(_F,),
    ),
    Plan(
        NonInviteServer,
        reach={
            _T: [],
            _P: [(fires(), 3.5)],
            _D: [(responds(200, OPTIONS), 0)],
            _X: [(fires(), LATE)],
        },
        events={
            "OPTIONS": receives(OPTIONS),
            "respond 100": responds(100, OPTIONS),
            "respond 180": responds(180, OPTIONS),
            "respond 200": responds(200, OPTIONS),
            "respond 408": responds(408, OPTIONS),
            "respond 603": responds(603, OPTIONS),
            "fire late": fires(),
            "failure": fails,
            "terminate": terminates,
        },
        table={
            (_P, "OPTIONS"): ("send 100", _P),
            (_P, "respond 100"): ("send 100", _P),
            **over_states(
                (_T, _P), {"respond 200": ("send 200", _D), "respond 603": ("send 603", _D), "respond 408": ("", _D)}
            ),
            **over_states((_T, _P), {"fire late": ("timed out", _X)}),
            (_D, "OPTIONS"): ("send 200", _D),
            (_D, "fire late"): ("", _X),
            **over_states((_T, _P, _D), {"failure": ("failed", None), "terminate": ("", _X)}),
        },
        reliable={
            (_T, "respond 100"): ("send 100", _P),  # RFC 4320 §4.1: over a reliable transport at any time
            **over_states(
                (_T, _P), {"respond 200": ("send 200", _X), "respond 603": ("send 603", _X), "respond 408": ("", _X)}
            ),
        },
        unreachable_reliable=(_D,),
    ),
]


def cases() -> list[object]:
    found = []
    for plan, reliable in itertools.product(PLANS, (False, True)):
        for state, event in itertools.product(plan.reach, plan.events):
            if not (reliable and state in plan.unreachable_reliable):
                name = f"{plan.kind.__name__}-{'reliable' if reliable else 'unreliable'}-{state.name}-{event}"
                found.append(pytest.param(plan, reliable, state, event, id=name.replace(" ", "_")))
    return found


def reached(plan: Plan, state: State, *, reliable: bool) -> tuple[Machine, float]:
    machine, now = make(plan.kind, reliable=reliable), 0.0
    for event, delay in plan.reach[state]:
        now += delay
        event(machine, now)
    assert machine.state is state
    return machine, now


@pytest.mark.parametrize(("plan", "reliable", "state", "event"), cases())
def test_transaction_event_in_state_does_what_the_table_says(plan: Plan, reliable: bool, state: State, event: str) -> None:
    machine, now = reached(plan, state, reliable=reliable)
    table = {**plan.table, **(plan.reliable if reliable else {})}
    at = now + (LATE if event == "fire late" else 0.01)
    actions = plan.events[event](machine, at)
    assert (actions, machine.state) == table.get((state, event), ("", state))
    if machine.state is State.TERMINATED:
        assert machine.next_at is None
        for later in plan.events.values():
            assert later(machine, at + LATE) == ""
            assert (machine.state, machine.next_at) == (State.TERMINATED, None)


@pytest.mark.parametrize(("plan", "reliable", "state", "event"), cases())
def test_transaction_fire_early_or_twice_does_nothing(plan: Plan, reliable: bool, state: State, event: str) -> None:
    machine, now = reached(plan, state, reliable=reliable)
    plan.events[event](machine, now)
    before, next_at = machine.state, machine.next_at
    if next_at is None:
        assert machine.fire(now + LATE) == 0
        return
    assert next_at > now
    assert machine.fire(next_at - 1e-6) == 0
    assert (machine.state, machine.next_at) == (before, next_at)
    machine.fire(next_at)
    again, later = machine.state, machine.next_at
    assert machine.fire(next_at) == 0
    assert (machine.state, machine.next_at) == (again, later)


def sent_at(machine: Machine, first: str, until: float) -> list[tuple[float, str]]:
    """What a machine does by itself, fired exactly when it asks for it."""
    log = [(0.0, first)] if first else []
    while machine.next_at is not None and machine.next_at <= until:
        at = machine.next_at
        log.append((at, words(machine, machine.fire(at))))
    return log


def test_invite_client_unanswered_sends_at_doubling_intervals_and_times_out() -> None:
    """§17.1.1.2: Timer A doubles without bound, Timer B at 64*T1."""
    machine = make(InviteClient, reliable=False)
    log = sent_at(machine, starts(machine, 0.0), 100)
    assert log == [(at, "send INVITE") for at in (0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5)] + [(32, "timed out")]


def test_invite_client_reliable_unanswered_sends_once() -> None:
    machine = make(InviteClient, reliable=True)
    assert sent_at(machine, starts(machine, 0.0), 100) == [(0, "send INVITE"), (32, "timed out")]


def test_non_invite_client_unanswered_sends_up_to_every_t2() -> None:
    """§17.1.2.2: Timer E doubles up to T2, Timer F at 64*T1."""
    machine = make(NonInviteClient, reliable=False)
    log = sent_at(machine, starts(machine, 0.0), 100)
    expected = (0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5)
    assert log == [(at, "send OPTIONS") for at in expected] + [(32, "timed out")]


def test_non_invite_client_after_provisional_sends_every_t2() -> None:
    machine = make(NonInviteClient, reliable=False)
    starts(machine, 0.0)
    receives(OR[100])(machine, 0.1)
    assert [at for at, _ in sent_at(machine, "", 100)] == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5, 32]


@pytest.mark.parametrize("kind", [InviteClient, NonInviteClient])
def test_client_fired_after_a_long_stall_sends_once_and_not_a_burst(kind: type[Machine]) -> None:
    machine = make(kind, reliable=False)
    starts(machine, 0.0)
    assert machine.fire(20.0) == SEND
    assert machine.next_at is not None
    assert machine.next_at > 20.0


def test_invite_client_cancelled_without_a_final_response_times_out_after_64_t1() -> None:
    """§9.1: the element cannot rely on a 487; the transaction is considered cancelled 64*T1 later."""
    machine = make(InviteClient, reliable=False)
    starts(machine, 0.0)
    receives(IR[180])(machine, 1.0)
    assert machine.next_at is None  # Timer C is the response context's.
    cancels(machine, 50.0)
    cancels(machine, 60.0)
    receives(IR[180])(machine, 61.0)
    assert sent_at(machine, "", 1000) == [(82.0, "timed out")]


def test_invite_client_ack_bears_the_to_tag_of_the_response_it_answers() -> None:
    """§17.1.1.3: "The To header field in the ACK MUST equal the To header field in the response being acknowledged"."""
    machine = make(InviteClient, reliable=False)
    starts(machine, 0.0)
    for tag in (b"one", b"two"):
        assert machine.receive(make_response(INVITE, 486, to_tag=tag), 1.0) & SEND  # type: ignore[arg-type]
        ack = parse_message(machine.out)
        assert (ack.to.tag, ack.cseq, ack.via.branch) == (tag, CSeq(314159, b"ACK"), INVITE.via.branch)


def test_invite_client_accepted_hands_up_2xx_of_every_fork_until_timer_m() -> None:
    """RFC 6026 §7.2."""
    machine = make(InviteClient, reliable=False)
    starts(machine, 0.0)
    forks = [make_response(INVITE, 200, to_tag=tag) for tag in (b"a", b"b", b"a")]
    for at, response in zip((1.0, 2.0, 32.9), forks, strict=True):
        assert machine.receive(response, at) == PASS_UP  # type: ignore[arg-type]
    assert machine.next_at == 33.0
    machine.fire(33.0)
    assert machine.receive(forks[0], 33.1) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "response", "until"), [(InviteClient, IR[486], 33.0), (NonInviteClient, OR[200], 6.0)])
def test_client_completed_absorbs_until_timer_d_or_k(kind: type[Machine], response: Response, until: float) -> None:
    """§17.1.1.2: Timer D at least 32 s; §17.1.2.2: Timer K is T4."""
    machine = make(kind, reliable=False)
    starts(machine, 0.0)
    receives(response)(machine, 1.0)
    assert sent_at(machine, "", 100) == [(until, "")]


def test_invite_server_silent_user_makes_it_send_100_after_200_ms() -> None:
    """§17.2.1."""
    machine = make(InviteServer, reliable=False)
    assert receives(INVITE)(machine, 0.1) == ""
    assert sent_at(machine, "", 100) == [(0.2, "send 100")]
    assert receives(INVITE)(machine, 0.5) == "send 100"


@pytest.mark.parametrize("status", [100, 180, 200, 486])
def test_invite_server_answered_by_its_user_sends_no_100(status: int) -> None:
    machine = make(InviteServer, reliable=True)
    responds(status, INVITE)(machine, 0.1)
    assert machine.fire(0.2) == 0


def test_invite_server_unacknowledged_refusal_is_repeated_up_to_every_t2_until_timer_h() -> None:
    """§17.2.1: Timer G doubles up to T2, Timer H at 64*T1."""
    machine = make(InviteServer, reliable=False)
    log = sent_at(machine, responds(486, INVITE)(machine, 0.0), 100)
    expected = (0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5)
    assert log == [(at, "send 486") for at in expected] + [(32, "timed out")]


def test_invite_server_reliable_refusal_is_sent_once() -> None:
    machine = make(InviteServer, reliable=True)
    assert sent_at(machine, responds(486, INVITE)(machine, 0.0), 100) == [(0, "send 486"), (32, "timed out")]


def test_invite_server_acknowledged_refusal_absorbs_acks_for_t4() -> None:
    machine = make(InviteServer, reliable=False)
    responds(486, INVITE)(machine, 0.0)
    receives(ACK)(machine, 1.0)
    assert sent_at(machine, "", 100) == [(6.0, "")]


def test_invite_server_accepted_absorbs_invites_for_64_t1() -> None:
    """RFC 6026 §7.1: else a retransmission of the INVITE would be a new call."""
    machine = make(InviteServer, reliable=False)
    responds(200, INVITE)(machine, 1.0)
    assert receives(INVITE)(machine, 32.9) == ""
    assert sent_at(machine, "", 100) == [(33.0, "")]


def test_non_invite_server_silent_user_makes_it_send_100_when_timer_e_is_at_t2() -> None:
    """RFC 4320 §4.1; no final response at all once the client has given up (§4.2)."""
    machine = make(NonInviteServer, reliable=False)
    assert sent_at(machine, "", 100) == [(3.5, "send 100"), (32.0, "timed out")]


@pytest.mark.parametrize(("reliable", "at", "sent"), [(False, 3.4, ""), (False, 3.6, "send 100"), (True, 0.0, "send 100")])
def test_non_invite_server_100_of_the_user_waits_on_an_unreliable_transport(reliable: bool, at: float, sent: str) -> None:
    assert responds(100, OPTIONS)(make(NonInviteServer, reliable=reliable), at) == sent


def test_non_invite_server_408_is_not_sent_and_retransmissions_stay_absorbed() -> None:
    """RFC 4320 §4.2."""
    machine = make(NonInviteServer, reliable=False)
    assert responds(408, OPTIONS)(machine, 5.0) == ""
    assert receives(OPTIONS)(machine, 6.0) == ""
    assert sent_at(machine, "", 100) == [(37.0, "")]


def test_server_transport_failure_keeps_the_transaction_to_absorb_retransmissions() -> None:
    """RFC 6026 §7.1: a server transaction is not discarded for a transport error alone."""
    machine = make(InviteServer, reliable=False)
    responds(486, INVITE)(machine, 0.0)
    assert fails(machine, 0.1) == "failed"
    assert receives(INVITE)(machine, 0.2) == "send 486"
