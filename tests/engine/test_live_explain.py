"""design.md, invariant 9: 10,000 random calls through the engine are decided as `explain` says for the same inputs."""

from __future__ import annotations

import datetime as dt
import ipaddress
import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from cdr.facts import Admit, End, Record
from policy.emergency import service_of
from policy.explain import Explanation, explain_attempt
from policy.model import (
    BlockRule,
    CallAttempt,
    Direction,
    Line,
    LineStatus,
    PsapRoute,
    RuleAction,
    RuleDirection,
    RuleKind,
    RuleLevel,
    Snapshot,
    Verdict,
)
from policy.windows import parse_windows
from sipproxy.engine.actions import Journal, TakeSlot
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Response
from tests.engine.desk import Desk
from tests.sim.conftest import PSAP, TRUNK_A
from tests.sim.world import REALM, World, account, line, snapshot, trunk

CALLS = 10_000
ACCESS = (ipaddress.ip_network("203.0.113.0/24"),)  # from here 110 and 112 need no challenge
BEGIN_MS = int(dt.datetime(2026, 10, 23, tzinfo=dt.UTC).timestamp() * 1000)  # the clock goes back two days later
DAY_MS = 24 * 3600 * 1000
STATUSES = [*LineStatus, LineStatus.ACTIVE, LineStatus.ACTIVE, LineStatus.ACTIVE, LineStatus.SELECTIVE]
CALLERS = ("+493023125001", "+493023125999", "+43664123456", "+491711234567", "09001123456", "110")
TARGETS = (
    "110", "112", "112233", "1-1-2", "urn:service:sos.fire", "01033112", "0112", "0234112", "*31%23112",
    "03023125001", "+493023125001", "tel:+49-30-23125001", "%30%33%30%32%33%31%32%35%30%30%31", "*31%2303023125002",
    "09001123456", "+499001123456", "11869", "11833", "115", "116117", "01033", "0123456", "0181123456", "0080812345678",
    "0043664123456", "+43664123456", "0043900123456", "0044207001234", "+4419001234", "01711234567", "0137123456", "0700123456",
    "06032807807", "06032990000", "+49603299", "02051988000", "0205198800", "4711", "911", "abc", "%00", "*21*0900#",
    "01721234567", "020519880011", "060329880066", "020519880077", "060329880000", "01611234567", "031012345",
    "00", "0", "+", "0018005551234",
)  # fmt: skip
BURST = ("03023125001", "03023125002", "112")


def rules() -> list[BlockRule]:
    office = parse_windows("mo-fr 08:00-17:00; su 02:00-03:00")
    customer = RuleLevel.CUSTOMER
    return [
        BlockRule("austria", "+43", "fraud"),
        BlockRule("vienna", "+436641", "on request", action=RuleAction.ALLOW, profile="velbert"),
        BlockRule("uk-at-work", "+44", "office", windows=office),
        BlockRule("uk-premium", "+4419", "fraud", valid_from_ms=BEGIN_MS + DAY_MS, valid_until_ms=BEGIN_MS + 3 * DAY_MS),
        BlockRule("premium-opt-in", "+499001", "opted in", action=RuleAction.ALLOW, line="L3"),
        BlockRule("directory-one", "service:11833", "priced", kind=RuleKind.NUMBER, action=RuleAction.ALLOW),
        BlockRule("no-mobile", "mobile", "own wish", kind=RuleKind.CLASS, line="L1", level=customer),
        BlockRule("but-one", "+4917112345", "own wish", action=RuleAction.ALLOW, line="L1", level=customer),
        BlockRule("nuisance", "+49302312599", "own wish", line="L2", level=customer, direction=RuleDirection.INCOMING),
        BlockRule("no-austria", "+43", "fraud", direction=RuleDirection.BOTH, kind=RuleKind.COUNTRY, profile="badnauheim"),
    ]


def carrier() -> Snapshot:
    lines: list[Line] = []
    accounts = []
    for number, status in enumerate(STATUSES):
        profile, area = (("badnauheim", "06032"), ("velbert", "02051"))[number % 2]
        user = f"user{number}"
        fields: dict[str, object] = {"status": status, "profile": profile, "area_code": area, "clir": number % 3 == 0}
        if status is LineStatus.BARRED_FULL:
            fields |= {"barred_since_ms": BEGIN_MS - 5 * DAY_MS, "status_at_ms": BEGIN_MS}
        lines.append(line(f"L{number}", user, reject_anonymous=number % 4 == 0, **fields))  # type: ignore[arg-type]
        accounts.append(account(user, f"L{number}", f"+49{area[1:]}98800{number}"))
    routes = [PsapRoute("friedberg", service, 1, f"sip:{service}@{PSAP[0]}:{PSAP[1]}") for service in ("110", "112")]
    return snapshot(lines, accounts, psap=routes, blocks=rules())


class Live:
    """The engine, with slots that are in use as the test says, and what it decided about one call."""

    def __init__(self, data: Snapshot) -> None:
        self.desk = Desk(World(data, trunks=(trunk("carrier-a", TRUNK_A),), access_networks=ACCESS).engine, utc_ms=BEGIN_MS)
        self.data = data
        self.starts: dict[str, list[float]] = defaultdict(list)

    def call(self, data: bytes, flow: Flow, used: dict[str, int]) -> Record:
        """The record of a call when each line has `used` channels in use before it."""
        actions = self.desk.engine.receive(data, flow, self.desk.now)
        done = 0
        while done < len(actions):
            action = actions[done]
            done += 1
            if isinstance(action, TakeSlot):
                before = used[action.slot.owner]
                taken = before < action.limit
                more = self.desk.engine.slot_result(action.slot, taken=taken, used=before + taken, now=self.desk.now)
                actions = [*actions, *more]
        facts = [action.fact for action in actions if isinstance(action, Journal)]
        found = [fact.record for fact in facts if isinstance(fact, Admit | End)]
        for slot, _ in self.desk.engine.channels.leases():
            self.desk.engine.calls.by_id[slot.call].refuse(480, 31, end_reason="operator")  # `used` alone says what is in use
        self.desk.engine.desk.take_actions()
        assert found, [action for action in actions if not isinstance(action, Journal)]
        if (call := self.desk.engine.calls.by_id.get(found[0].id)) is not None:
            call.end("operator", released_by="proxy", cause=31)  # the node counts its own calls too, and the test says how many
            self.desk.engine.desk.take_actions()
        return found[0]

    def setups(self, caller: Line) -> int:
        """Naive: every start of the line is kept."""
        _, window_s = self.data.setup_limit(caller)
        return sum(self.desk.mono - at < window_s for at in self.starts[caller.id])


def expected(live: Live, attempt: CallAttempt, used: dict[str, int]) -> Explanation:
    """What `explain` says: of an internal call the callee's refusal, when the caller's half has none but for channels."""
    now = live.desk.utc_ms
    free = explain_attempt(attempt, live.data, now)
    found = free.decision
    if attempt.line is not None and found.verdict is Verdict.ALLOW:
        live.starts[attempt.line.id].append(live.desk.mono)
    if found.verdict is not Verdict.ALLOW or found.line is None:
        return free
    halves = [attempt]
    if attempt.direction is Direction.OUTGOING and found.callee is not None:
        number = found.destination.canonical.encode()
        halves.append(
            CallAttempt(Direction.INCOMING, number, caller=found.presented, network=found.asserted, privacy=found.restricted)
        )
        other = explain_attempt(halves[1], live.data, now)
        if other.decision.verdict is Verdict.DENY:
            return other
    for half in halves:
        concerned = explain_attempt(half, live.data, now).decision.line
        assert concerned is not None
        full = explain_attempt(
            CallAttempt(
                half.direction, half.target, half.line, half.account, half.caller, used[concerned.id],
                attempt.setups if half is attempt else None, half.privacy, half.anonymous, half.network,
            ),
            live.data,
            now,
        )  # fmt: skip
        if full.decision.verdict is Verdict.DENY:
            return full
    return free


@pytest.mark.parametrize("seed", [20261025])
def test_live_decisions_of_random_calls_equal_explain(seed: int) -> None:
    chance = random.Random(seed)
    data = carrier()
    live = Live(data)
    desk = live.desk
    router, trunk_flow = Flow("UDP", 0, "203.0.113.1", 5060), Flow("UDP", 0, *TRUNK_A)
    seen: Counter[str] = Counter()
    for number in range(CALLS):
        burst = number % 2000 < 120  # a line that dials by machine
        desk.tick(0.01 if burst else chance.choice([0.0, 0.1, 0.5, 1.0, 2.0, 90.0, 600.0 if number % 10 == 0 else 0.2]))
        used = {key: 0 if burst else chance.choice([0, 0, 0, 1, 2, 3]) for key in data.lines}
        call_id = b"call-%d" % number
        if burst or chance.random() < 0.65:
            caller = data.lines["L7" if burst else f"L{chance.randrange(len(data.lines))}"]
            own = data.accounts[caller.accounts[0]]
            target = chance.choice(BURST if burst else TARGETS)
            uri = (target if ":" in target else f"sip:{target}@{REALM}").encode()
            headers = () if service_of(uri) else (desk.credentials(b"INVITE", uri, user=own.user),)
            attempt = CallAttempt(Direction.OUTGOING, uri, caller, own, caller=own.user, setups=live.setups(caller))
            data_out = desk.request(b"INVITE", uri, user=own.user.encode(), call_id=call_id, headers=headers)
            flow = router
        else:
            callee = data.accounts[f"user{chance.randrange(len(data.lines))}"]
            called = chance.choice([*callee.numbers, *callee.numbers, "+4960321", "112", "+492051988000"])
            calling = chance.choice(CALLERS)
            uri = f"sip:{called}@{REALM}".encode()
            asserted = (b"P-Asserted-Identity", f"<sip:{calling}@carrier.example>".encode())
            attempt = CallAttempt(Direction.INCOMING, uri, caller=calling, network=calling)
            data_out = desk.request(b"INVITE", uri, user=calling.encode(), call_id=call_id, headers=(asserted,))
            flow = trunk_flow
        record = live.call(data_out, flow, used)
        wanted = expected(live, attempt, used).decision
        found = (record.verdict, record.rule, record.canonical)
        own_half = explain_attempt(attempt, data, desk.utc_ms).decision
        assert found == (wanted.verdict.value, wanted.rule, own_half.destination.canonical), (number, attempt, wanted.steps)
        if wanted.verdict is Verdict.DENY:
            assert (record.status, record.cause) == (wanted.status, wanted.cause), (number, attempt)
        seen[record.rule if wanted.verdict is Verdict.DENY else record.verdict] += 1
    # The random calls reach every family of rules that can refuse a call here.
    assert {
        "allow", "emergency", "line.rate", "line.channels", "block.class.premium", "block.rule.austria", "block.rule.no-mobile",
        "block.rule.uk-at-work", "block.rule.uk-premium", "block.rule.nuisance", "line.status.barred_out", "plan.reserved",
        "line.status.barred_full", "line.status.fraud_hold", "line.status.terminated", "number.unassigned", "caller.forbidden",
    } <= seen.keys(), seen  # fmt: skip


def test_a_changed_snapshot_changes_the_verdict_on_the_same_number_at_once() -> None:
    """What a number means is remembered; what follows from it is asked of the snapshot each time. Help is never refused."""
    desk, number = Desk(), b"sip:+4930123456@sip.test"
    before = desk.engine.desk.snapshot
    changed = replace(before, version=8, blocks=(BlockRule("now", "+4930", "since now"), BlockRule("all", "+49", "and all")))

    def refused(uri: bytes, call_id: bytes) -> list[int]:
        proof = () if uri != number else (desk.credentials(b"INVITE", uri),)
        sent = desk.receive(desk.request(b"INVITE", uri, call_id=call_id, headers=proof))
        return [message.status for message in sent if isinstance(message, Response) and message.status >= 300]

    assert desk.register(b"<sip:alice@203.0.113.1:5060>").status == 200
    for turn, (snapshot_, wanted) in enumerate([(before, []), (changed, [403]), (before, []), (changed, [403])]):
        desk.engine.swap_snapshot(snapshot_, desk.now)
        assert refused(number, b"call-%d" % turn) == wanted
        assert refused(b"sip:112@sip.test", b"help-%d" % turn) == []
