"""design.md, invariant 9, of calls that a line sends on: the live path decides on each as `explain` says."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from policy.explain import explain_attempt
from policy.model import CallAttempt, Direction, Verdict
from sipproxy.engine.forwarding import Before, decide
from tests.sim.conftest import make_town
from tests.sim.test_sim_redirect import ASSERTED, BOB, CALLER, redirecting

if TYPE_CHECKING:
    from policy.explain import Explanation
    from policy.model import Decision, Snapshot
    from tests.sim.conftest import Town

TARGETS = (
    b"sip:03023125001@sip.test", b"tel:+49-30-23125001", b"sip:+4920514001@sip.test", b"sip:020514001@sip.test",
    b"sip:112@sip.test", b"sip:110@elsewhere.example", b"urn:service:sos", b"sip:03023125001@elsewhere.example",
    b"sip:09001234567@sip.test", b"sip:060323001@sip.test", b"sip:alice@sip.test", b"sip:4711@sip.test", b"mailto:bob@sip.test",
    b"sip:*21*0900%23@sip.test", b"sips:03023125001@sip.test", b"sip:0112@sip.test",
)  # fmt: skip
CHAINS = ((), ("+4940669690",), ("+493023125001",), ("+4940669690",) * 5)


def explained(town: Town, target: bytes, chain: tuple[str, ...]) -> Explanation:
    world = town.world
    desk, before = world.engine.desk, Before(BOB, frozenset(chain), len(chain))

    def way(attempt: CallAttempt, snapshot: Snapshot, now_at_ms: int) -> Decision:
        return decide(attempt, before, snapshot, desk.settings, now_at_ms)

    account = desk.snapshot.accounts["bob"]
    attempt = CallAttempt(Direction.OUTGOING, target, desk.snapshot.lines[account.line], account, caller=BOB, slots_used=1)
    return partial(explain_attempt, decide=way)(attempt, desk.snapshot, world.instant.utc_ms)


@pytest.mark.parametrize("chain", CHAINS, ids=len)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.decode())
def test_call_that_is_sent_on_is_decided_as_explain_says(target: bytes, chain: tuple[str, ...]) -> None:
    town = make_town()
    town.register_all()
    redirecting(town.bob, b"<" + target + b">")
    diverted = tuple((b"Diversion", b"<sip:%s@carrier.example>;reason=unconditional" % n.encode()) for n in chain)
    explanation = explained(town, target, chain)
    decision = explanation.decision
    town.trunk_b.call(b"+4920514001", headers=(*ASSERTED, *diverted), from_user=CALLER.decode())
    town.world.run(5.0)
    parts = [record for record in (*town.world.admitted, *town.world.records) if record.forwarded_from]
    assert parts, "the contact was not followed"
    part = parts[-1]
    assert part.verdict == ("deny" if decision.verdict is Verdict.DENY else "allow")
    if decision.verdict is Verdict.DENY:
        assert (part.rule, part.status, part.cause) == (decision.rule, decision.status, decision.cause)
        assert f"by {part.rule}," in explanation.words[-1]
    assert part.canonical == decision.destination.canonical
    assert (decision.rule.startswith("forward.")) == (decision.steps[-1][0].startswith("forward."))
