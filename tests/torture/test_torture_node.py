"""The message corpora against a real node over UDP and TCP: the short form of `make torture`."""

from __future__ import annotations

import pytest

from tests.sip.torture_corpus import MISSING, rows
from tests.torture.hammer import Hammer
from tests.torture.run import manifests, opened, protos

pytestmark = pytest.mark.skipif(not rows("rfc"), reason=MISSING)


async def test_every_outcome_is_one_that_the_manifest_allows_and_nothing_is_left_behind() -> None:
    """As a stranger, as a carrier and as a line; then some of PROTOS. An OPTIONS every 100 ms is answered throughout."""
    async with opened() as torture:
        outcomes = await manifests(torture)
        wrong = [str(outcome) for outcome in outcomes if not outcome.ok]
        assert not wrong, "\n".join(wrong)
        assert len(outcomes) > 1000
        assert sum("forward" in outcome.seen for outcome in outcomes) > 30
        dblreq = [o for o in outcomes if (o.case, o.role, o.transport) == ("dblreq.dat", "stranger", "UDP")]
        assert [sorted(outcome.seen) for outcome in dblreq] == [["401"]]
        hammer = Hammer(torture)
        for tcp in (False, True):
            assert await hammer.send(protos(step=40), tcp=tcp) > 70
            dear = await hammer.costs(protos(step=400), tcp=tcp)
            assert sum(cost.ms for cost in dear) > 0  # of one alone the kernel may not have taken note yet
        assert not hammer.faults, "\n".join(hammer.faults)
        assert hammer.got_bytes > 1000
        assert not torture.troubles()
        pulse = torture.pulse
        await pulse.settled()
        assert (pulse.lost, pulse.wrong) == (0, [])
        assert len(pulse.ms) > 20
        transactions = await torture.left(timeout_s=0.0)
        held = {name for name in transactions if not name.startswith("sipproxy_transactions_live")}  # they last 32 s
        assert not held or not {name for name in await torture.left(timeout_s=40.0) if "transactions" not in name}
