"""kill -9 under calls whose caller is hidden, or another to each side: they go on, and who hid stays hidden (invariant 11)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from cdr import codec
from cdr.facts import Answer
from tests.sim.restarted import a_town


def test_caller_whose_name_was_replaced_is_the_same_to_both_after_the_restart() -> None:
    """Towards a customer an account name in From is replaced by the number, and put back on the way to the caller."""
    town, node = a_town()
    town.alice.call(b"020514001")
    town.world.run(5.0)
    at_bob = town.bob.calls[0]
    assert at_bob.invite is not None
    shown = at_bob.invite.from_.uri.raw
    assert shown != b"sip:alice@sip.test"
    node.kill()
    node.start()
    call = town.alice.calls[-1]
    town.alice._in_dialog(call, b"INFO")
    town.world.run(1.0)
    town.bob._in_dialog(at_bob, b"INFO")
    town.world.run(1.0)
    to_bob, to_alice = ([r for r in a.requests if r.method == b"INFO"][-1] for a in (town.bob, town.alice))
    assert to_bob.from_.uri.raw == shown
    assert to_alice.to.uri.raw == b"sip:alice@sip.test"


@pytest.mark.parametrize("privacy", [b"id", b"user;id"])
def test_hidden_caller_stays_in_his_call_and_hidden_over_a_restart(privacy: bytes) -> None:
    """Design, invariant 11: neither what the callee gets nor the journal holds his number, and both parties are told apart."""
    town, node = a_town()
    world, number = town.world, b"89123456"
    town.trunk.call(b"+4920514001", headers=((b"Privacy", privacy),), from_user="+4989123456")
    world.run(5.0)
    call, at_bob = town.trunk.calls[-1], town.bob.calls[0]
    assert call.status == 200
    node.kill()
    world.run(3.0)
    node.start()
    town.trunk.chatter = [(b"X-Who", b"+49 89 12 34 56"), (b"Subject", b"dinner")]
    town.trunk._in_dialog(call, b"INFO")
    world.run(1.0)
    town.trunk.contact_user = "+4989123456"
    answers: list[int] = []
    town.trunk.reinvite(call, lambda response: answers.append(response.status if response is not None else 0))
    world.run(2.0)
    town.bob._in_dialog(at_bob, b"INFO")
    world.run(1.0)
    at_trunk = [request for request in town.trunk.requests if request.method == b"INFO"][-1]
    assert (at_trunk.uri, at_trunk.to.uri.raw) == (b"sip:+4989123456@198.51.100.1:5060", b"sip:+4989123456@sip.test")
    assert answers[-1] == 200
    info = next(request for request in town.bob.requests if request.method == b"INFO")
    assert (info.has(b"x-who"), info.has(b"subject"), len(info.vias)) == (False, privacy == b"id", 2 if privacy == b"id" else 1)
    town.bob.bye(at_bob)
    world.run(2.0)
    assert call.ended == "remote"
    to_bob = [data for _, _, to, data in world.wire if to == town.bob.address]
    assert not any(number in data.translate(None, b"-.() /") for data in to_bob)
    assert not any(number in codec.encode_fact(fact) for fact in world.facts)
    (record,) = world.records
    assert (record.end_reason, record.calling, record.duration_certain) == ("normal", "", True)
    town.assert_reconciled()


def test_answer_for_a_hidden_caller_that_the_node_died_with_reaches_him_after_the_restart() -> None:
    """His Via lines, which the callee did not see, are those that the answer goes back by."""
    town, node = a_town()
    world = town.world
    call = town.trunk.call(b"+4920514001", headers=((b"Privacy", b"header"),), from_user="+4989123456")
    world.run_until(lambda: any(own.status for own in town.bob.calls))
    while not any(isinstance(fact, Answer) for fact in world.facts):
        node.kill_after(1, lambda: None)
        world.run(0.001)
        if node.is_away:
            break
    assert not call.status
    node.start()
    world.run(5.0)
    assert (call.status, town.bob.calls[0].acked) == (200, True)


def test_hidden_caller_whose_mask_cannot_be_read_ends_with_the_node() -> None:
    """The secret of the data directory is another one: nobody may take the call up without his mask."""
    town, node = a_town()
    town.trunk.call(b"+4920514001", headers=((b"Privacy", b"id"),), from_user="+4989123456")
    town.world.run(5.0)
    node.kill()
    for index, fact in enumerate(town.world.facts):
        if isinstance(fact, Answer):
            (dialog,) = fact.dialogs
            assert dialog.mask
            town.world.facts[index] = replace(fact, dialogs=(replace(dialog, mask=dialog.mask[:-8] + b"AAAAAAAA"),))
    node.start()
    town.bob.bye(town.bob.calls[0])
    town.world.run(40.0)
    assert [record.end_reason for record in town.world.records] == ["node_restart"]
    assert not any(b"89123456" in data for _, _, to, data in town.world.wire if to == town.bob.address)
    town.assert_reconciled()


def test_hidden_caller_who_is_too_long_to_be_kept_ends_with_the_node() -> None:
    town, node = a_town()
    name = "x" * 800
    town.trunk.call(b"+4920514001", headers=((b"Privacy", b"id"),), from_user=name)
    town.world.run(5.0)
    assert [fact.dialogs for fact in town.world.facts if isinstance(fact, Answer)] == [()]
    node.kill()
    node.start()
    assert [record.end_reason for record in town.world.records] == ["node_restart"]
