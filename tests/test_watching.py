"""Following a line live (sipproxy.watching), without a node around it."""

from __future__ import annotations

import structlog

from sipproxy.net.passed import Passed
from sipproxy.watching import Watching
from tests.engine.desk import Desk


async def test_call_with_a_very_long_call_id_is_followed_by_as_much_of_it_as_its_record_has() -> None:
    desk = Desk()
    watching = Watching(desk.engine, structlog.get_logger("test"), [], [])
    events = watching.watch({"target": "L1", "minutes": 1, "why": "a fault", "who": "operator"})
    assert (await anext(events))["kind"] == "begins"
    call_id = b"c" * 50_000
    invite = desk.request(b"INVITE", b"sip:03023125001@sip.test", call_id=call_id)
    of_others = desk.request(b"INFO", b"sip:carol@sip.test", user=b"dave", call_id=call_id)
    for data in (invite, of_others, of_others.replace(call_id, b"another")):
        watching.passed(Passed(0, False, "UDP", ("192.0.2.1", 5060), ("203.0.113.1", 5060), data))
    assert [(await anext(events))["data"].partition(" ")[0] for _ in range(2)] == ["INVITE", "INFO"]
    [watch] = watching._watches
    assert watch.events.empty()
    assert [len(known) for known in watch._calls] == [512]
    await events.aclose()  # type: ignore[attr-defined]
