"""What holds for any sequence of events on a virtual clock (RFC 3261 §17, RFC 6026, RFC 4320)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transaction_samples import make_request, make_response

from sipproxy.sip.timers import Timers
from sipproxy.sip.transaction import (
    FAILED,
    SEND,
    TIMED_OUT,
    InviteClient,
    InviteServer,
    NonInviteClient,
    NonInviteServer,
    State,
)

Machine = InviteClient | NonInviteClient | InviteServer | NonInviteServer
Step = tuple[str, int, float]  # event, status, seconds since the one before

TRANSPORTS = ("UDP", "TCP")  # unreliable and reliable
STATUSES = (100, 180, 183, 200, 202, 302, 408, 486, 487, 503, 603)
INVITE, OPTIONS, ACK = make_request(), make_request(b"OPTIONS"), make_request(b"ACK")
RESPONSES = {(r.method, status): make_response(r, status) for r in (INVITE, OPTIONS) for status in STATUSES}
DELAYS = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 40))
timers = st.builds(Timers, t1=st.sampled_from([0.1, 0.5, 2.0]), t2=st.sampled_from([2.0, 4.0]), t4=st.sampled_from([1.0, 5.0]))


def steps(*events: str) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(st.sampled_from(events), st.sampled_from(STATUSES), DELAYS), max_size=25)


client_steps = steps("start", "response", "response", "fire", "failure", "cancelled")
server_steps = steps("request", "ack", "respond", "fire", "failure")


def client(kind: type[InviteClient | NonInviteClient], values: Timers, *, reliable: bool) -> InviteClient | NonInviteClient:
    return kind(INVITE if kind is InviteClient else OPTIONS, values, TRANSPORTS[reliable])


def server(kind: type[InviteServer | NonInviteServer], values: Timers, *, reliable: bool) -> InviteServer | NonInviteServer:
    return kind(INVITE if kind is InviteServer else OPTIONS, values, TRANSPORTS[reliable], 0.0)


def perform(machine: Machine, step: Step, now: float) -> int:
    event, status, _ = step
    request = INVITE if isinstance(machine, InviteClient | InviteServer) else OPTIONS
    method = request.method
    if event == "start":
        return machine.start(now) if isinstance(machine, InviteClient | NonInviteClient) else 0
    if event == "response":
        return machine.receive(RESPONSES[method, status], now)  # type: ignore[arg-type]
    if event == "cancelled":
        return machine.cancelled(now) if isinstance(machine, InviteClient) else 0
    if event == "request":
        return machine.receive(request, now)  # type: ignore[arg-type]
    if event == "ack":
        return machine.receive(ACK, now) if isinstance(machine, InviteServer) else 0
    if event == "respond":
        return machine.respond(status, RESPONSES[method, status].raw, now)  # type: ignore[union-attr]
    return machine.fire(now) if event == "fire" else machine.transport_failed(now)


def run(machine: Machine, plan: list[Step]) -> tuple[float, list[tuple[int, bytes]]]:
    """Play a plan; after each event the machine is either terminated, silent and without a deadline, or not. Returns the time,
    and after each event what was to be done and what was to be sent, b"" for nothing."""
    now, log = 0.0, list[tuple[int, bytes]]()
    for step in plan:
        now += step[2]
        was = machine.state
        todo = perform(machine, step, now)
        log.append((todo, machine.out if todo & SEND else b""))
        if was is State.TERMINATED:
            assert todo == 0
            assert machine.state is State.TERMINATED
        if machine.state is State.TERMINATED:
            assert machine.next_at is None
    return now, log


def assert_ends(machine: Machine, now: float, values: Timers, waiting: State | None) -> None:
    """Left alone, with each deadline kept, it ends within its longest timer and with a bounded number of sendings."""
    bound, fired = now + max(32.0, 64 * values.t1), 0
    while machine.next_at is not None:
        assert machine.next_at <= bound
        machine.fire(machine.next_at)
        fired += 1
        assert fired <= 64 + 2
    assert machine.state in (State.TERMINATED, waiting)


@given(client_steps, timers, st.booleans())
def test_invite_client_any_events_then_silence_ends(plan: list[Step], values: Timers, reliable: bool) -> None:
    machine = client(InviteClient, values, reliable=reliable)
    machine.start(0.0)
    now, _ = run(machine, plan)
    assert_ends(machine, now, values, State.PROCEEDING)  # there Timer C is the user's
    machine.cancelled(now)
    assert_ends(machine, now, values, None)


@given(client_steps, timers, st.booleans())
def test_non_invite_client_any_events_then_silence_ends(plan: list[Step], values: Timers, reliable: bool) -> None:
    machine = client(NonInviteClient, values, reliable=reliable)
    machine.start(0.0)
    now, _ = run(machine, plan)
    assert_ends(machine, now, values, None)


@given(server_steps, timers, st.booleans())
def test_invite_server_any_events_then_silence_ends(plan: list[Step], values: Timers, reliable: bool) -> None:
    machine = server(InviteServer, values, reliable=reliable)
    now, _ = run(machine, plan)
    assert_ends(machine, now, values, State.PROCEEDING)  # there the user owes an answer
    machine.respond(486, RESPONSES[b"INVITE", 486].raw, now)
    assert_ends(machine, now, values, None)


@given(server_steps, timers, st.booleans())
def test_non_invite_server_any_events_then_silence_ends(plan: list[Step], values: Timers, reliable: bool) -> None:
    machine = server(NonInviteServer, values, reliable=reliable)
    now, log = run(machine, plan)
    assert_ends(machine, now, values, None)
    sent = [data for _, data in log]
    assert not any(data.startswith(b"SIP/2.0 408") for data in sent)  # RFC 4320 §4.2
    assert not any(data.startswith((b"SIP/2.0 180", b"SIP/2.0 183")) for data in sent)  # RFC 4320 §4.1


@given(client_steps, timers)
def test_invite_client_answers_each_final_refusal_with_exactly_one_ack(plan: list[Step], values: Timers) -> None:
    """§17.1.1.2, and never a 2xx or a provisional response."""
    machine = client(InviteClient, values, reliable=False)
    machine.start(0.0)
    now = 0.0
    for step in plan:
        now += step[2]
        owed = step[0] == "response" and step[1] >= 300 and machine.state in (State.CALLING, State.PROCEEDING, State.COMPLETED)
        acks = perform(machine, step, now) & SEND and machine.out.startswith(b"ACK ")
        assert acks == owed


@given(client_steps, st.sampled_from([InviteClient, NonInviteClient]), st.booleans())
def test_client_user_hears_of_the_end_at_most_once(
    plan: list[Step], kind: type[InviteClient | NonInviteClient], reliable: bool
) -> None:
    """One TIMED_OUT or FAILED at most, and none of the two after a final response but a failed ACK."""
    machine = client(kind, Timers(), reliable=reliable)
    machine.start(0.0)
    _, log = run(machine, plan)
    ends = [todo for todo, _ in log if todo & (TIMED_OUT | FAILED)]
    assert len(ends) <= 1


@given(server_steps, st.sampled_from([InviteServer, NonInviteServer]), st.booleans())
def test_server_repeats_only_what_its_user_said_last_or_100(
    plan: list[Step], kind: type[InviteServer | NonInviteServer], reliable: bool
) -> None:
    """A retransmitted request is answered by the most recent response or not at all, and never by an older one."""
    machine = server(kind, Timers(), reliable=reliable)
    now, last = 0.0, b""
    for step in plan:
        now += step[2]
        sent = machine.out if perform(machine, step, now) & SEND else b""
        if sent and step[0] == "request":
            assert sent == last
        last = sent or last
