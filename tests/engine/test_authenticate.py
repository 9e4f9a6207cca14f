"""Who exists is not told, guesses are limited, nonces are their source's: through the whole engine (RFC 3261 §22, RFC 7616)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from policy.model import LineStatus, Snapshot
from sipproxy.engine.actions import TakeSlot
from sipproxy.engine.guesses import GuessLimits
from sipproxy.sip import digest
from sipproxy.sip.digest import parse_challenge, write_credentials
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, Response
from tests.engine.desk import DOMAIN, ROUTER, STRANGER, Desk
from tests.sim.conftest import make_town
from tests.sim.world import account, line, snapshot

NONCE = re.compile(rb'nonce="([^"]*)"')
HOME = b"<sip:alice@203.0.113.1:5060>"
DIALLED = b"sip:+4930123456@sip.test"
FEW = GuessLimits(pair=3, user=6, source=5, answered=8, window_s=600, entries=100)


def desk_with(limits: GuessLimits = FEW, **options: object) -> Desk:
    return Desk(make_town(guesses=limits, **options).world.engine)  # type: ignore[arg-type]


def mixed(*, md5_share: float = 0.5, count: int = 400) -> Snapshot:
    """Accounts u0 to u399, a share of them with an MD5 hash alone; u1 on a barred line."""
    accounts = []
    for number in range(count):
        made = account(f"u{number}", f"L{number}", f"+4960324{number:04}")
        few = (number * 7919 % 100) / 100 < md5_share
        accounts.append(replace(made, ha1={"MD5": made.ha1["MD5"]}) if few else made)
    lines = [line(f"L{n}", f"u{n}", status=LineStatus.BARRED_OUT if n == 1 else LineStatus.ACTIVE) for n in range(count)]
    return snapshot(lines, accounts)


def challenge_of(desk: Desk, user: str, method: bytes = b"REGISTER", flow: Flow = STRANGER) -> Response:
    return desk.answer(desk.request(method, DOMAIN if method == b"REGISTER" else DIALLED, user=user.encode()), flow)


def shape(response: Response) -> tuple[object, ...]:
    """An answer without what is another one each time."""
    name = b"www-authenticate" if response.status == 401 else b"proxy-authenticate"
    return (
        response.status,
        response.reason,
        tuple(v.partition(b"nonce=")[0] for v in response.lines(name)),
        algorithms(response),
    )


def algorithms(response: Response) -> tuple[str, ...]:
    name = b"www-authenticate" if response.status == 401 else b"proxy-authenticate"
    return tuple(parse_challenge(value).algorithm for value in response.lines(name))


def guess(
    desk: Desk, user: str, password: str, flow: Flow = STRANGER, method: bytes = b"REGISTER", **options: object
) -> Response:
    """One try at a password, on a fresh challenge."""
    options.setdefault("call_id", b"guess")
    uri = DOMAIN if method == b"REGISTER" else DIALLED
    value = desk.credentials(method, uri, user=user, password=password, flow=flow)
    headers = (value, (b"Contact", b"<sip:x@%s:5060>" % flow.host.encode())) if ":" not in flow.host else (value,)
    return desk.answer(desk.request(method, uri, user=user.encode(), headers=headers, **options), flow)  # type: ignore[arg-type]


def failures(desk: Desk) -> dict[str, int]:
    return {key[1]: n for key, n in desk.engine.desk.counters.items() if key[0] == "auth_failures" and key[1] != "missing"}


# Who exists


@pytest.mark.parametrize("method", [b"REGISTER", b"INVITE"])
@pytest.mark.parametrize("md5_share", [0.0, 0.3, 1.0])
def test_challenge_unknown_names_are_offered_what_as_many_accounts_are(method: bytes, md5_share: float) -> None:
    """Whoever is offered MD5 alone is an account no more likely than whoever is offered both."""
    desk = Desk()
    desk.engine.swap_snapshot(mixed(md5_share=md5_share), desk.now)
    known = Counter(algorithms(challenge_of(desk, f"u{n}", method)) for n in range(400))
    unknown = Counter(algorithms(challenge_of(desk, f"nobody{n}", method)) for n in range(400))
    assert known.keys() == unknown.keys()
    for offered, count in known.items():
        assert abs(count - unknown[offered]) < 60  # more than five standard deviations


@pytest.mark.parametrize("method", [b"REGISTER", b"INVITE"])
@pytest.mark.parametrize("user", ["u0", "u1", "u5", "nobody", "%6eobody", "+4960320000001", "a" * 300])
def test_challenge_of_a_name_is_always_the_same_whatever_came_before(method: bytes, user: str) -> None:
    desk = Desk()
    desk.engine.swap_snapshot(mixed(), desk.now)
    first = shape(challenge_of(desk, user, method))
    desk.tick(3600)
    assert shape(challenge_of(desk, user, method)) == first
    assert shape(guess(desk, user, "wrong", method=method)) == first
    assert first[0] == (401 if method == b"REGISTER" else 407)


def test_challenge_of_an_unknown_name_is_the_same_at_every_node_that_shares_the_secret() -> None:
    one, other = Desk(), Desk()
    other.engine.auth.rekey(b"another secret of its own, 32 b.!")
    for desk in (one, other):
        desk.engine.swap_snapshot(mixed(), desk.now)
    names = [f"nobody{n}" for n in range(40)]
    assert [algorithms(challenge_of(one, n)) for n in names] != [algorithms(challenge_of(other, n)) for n in names]
    for desk in (one, other):
        desk.engine.auth.rekey(b"the secret that both have, 32 b.!")
    assert [algorithms(challenge_of(one, n)) for n in names] == [algorithms(challenge_of(other, n)) for n in names]


def test_challenge_by_a_number_is_its_accounts() -> None:
    """A PBX calls with its number in From and its account's name in the credentials."""
    desk = Desk()
    desk.engine.swap_snapshot(mixed(), desk.now)
    for number in range(30):
        by_name, by_number = (challenge_of(desk, user, b"INVITE") for user in (f"u{number}", f"+4960324{number:04}"))
        assert algorithms(by_name) == algorithms(by_number)


@pytest.mark.plain_alone
@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_wrong_response_costs_the_same_work_for_every_kind_of_name(monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    """Counted, not timed: hashes by algorithm and length of what is hashed, and comparisons."""
    desk = desk_with(GuessLimits())
    desk.engine.swap_snapshot(mixed(), desk.now)
    accounts = desk.engine.desk.snapshot.accounts
    md5_only = next(user for user, found in accounts.items() if len(found.ha1) == 1 and user != "u1")
    both = next(user for user, found in accounts.items() if len(found.ha1) == 2 and user != "u1")
    work: list[object] = []
    real_digest, real_compare = digest._digest, digest.hmac.compare_digest
    monkeypatch.setattr(digest, "_digest", lambda a, d: (work.append((a, len(d))), real_digest(a, d))[1])
    monkeypatch.setattr(digest.hmac, "compare_digest", lambda a, b: (work.append((len(a), len(b))), real_compare(a, b))[1])
    seen = {}
    for user in (md5_only, both, "u1", "nobody"):
        challenge = parse_challenge(challenge_of(desk, user).lines(b"www-authenticate")[0])
        value = write_credentials(
            replace(challenge, algorithm=algorithm), method=b"REGISTER", uri=DOMAIN, user=user, password="x", cnonce=b"c", nc=1
        )
        work.clear()
        assert desk.answer(desk.request(user=user.encode(), headers=((b"Authorization", value),)), STRANGER).status == 401
        seen[user] = list(work)
    assert all(done == seen["nobody"] for done in seen.values()), seen
    assert len(seen["nobody"]) == 4  # the MAC of the nonce, H(A2), the response, its comparison


def test_right_password_of_a_barred_line_is_no_other_than_of_any_line() -> None:
    desk = Desk()
    desk.engine.swap_snapshot(mixed(md5_share=0.0), desk.now)
    answers = [guess(desk, user, user[::-1]).status for user in ("u1", "u2")]
    assert answers == [200, 200]


def test_algorithm_that_is_not_offered_is_not_taken() -> None:
    """RFC 8760 §2.4: an account with hashes of both, where the configuration has no MD5 any more."""
    desk = desk_with(algorithms=("SHA-256",))
    challenge = parse_challenge(challenge_of(desk, "alice").lines(b"www-authenticate")[0])
    for algorithm, status in (("MD5", 401), ("SHA-256", 200)):
        wanted = replace(challenge, algorithm=algorithm)
        value = write_credentials(wanted, method=b"REGISTER", uri=DOMAIN, user="alice", password="ecila", cnonce=b"c", nc=1)
        assert desk.answer(desk.request(headers=((b"Authorization", value),)), STRANGER).status == status


# Guesses


@pytest.mark.parametrize("user", ["alice", "nobody"])
def test_guesses_of_one_source_at_one_name_end_at_the_pairs_limit_with_the_same_answer(user: str) -> None:
    desk = desk_with()
    answers = [shape(guess(desk, user, f"wrong{n}")) for n in range(6)]
    assert len(set(answers)) == 1
    assert failures(desk) == {"wrong": 3, "limited": 3}
    assert shape(guess(desk, user, user[::-1])) == answers[0]  # the right one is not looked at either


def test_guess_over_a_limit_costs_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = desk_with()
    for n in range(3):
        guess(desk, "alice", f"wrong{n}")
    value = desk.credentials(b"REGISTER", DOMAIN, password="wrong", flow=STRANGER)
    monkeypatch.setattr(digest, "_digest", None)
    assert desk.answer(desk.request(headers=(value,)), STRANGER).status == 401


def test_guesses_of_one_source_at_many_names_end_at_the_sources_limit() -> None:
    desk = desk_with()
    for n in range(9):
        guess(desk, f"name{n}", "wrong")
    assert failures(desk) == {"wrong": 5, "limited": 4}


def test_guesses_of_many_sources_at_one_name_end_at_the_names_limit() -> None:
    desk = desk_with()
    for n in range(9):
        guess(desk, "alice", "wrong", Flow("UDP", 0, f"198.51.100.{n}", 5060))
    assert failures(desk) == {"wrong": 6, "limited": 3}


def test_guesses_over_ipv6_count_by_the_slash_64() -> None:
    desk = desk_with()
    for n in range(8):
        guess(desk, "alice", "wrong", Flow("UDP", 0, f"2001:db8:0:1:{n:x}::{n + 1:x}", 5060))
    assert failures(desk) == {"wrong": 3, "limited": 5}
    guess(desk, "alice", "wrong", Flow("UDP", 0, "2001:db8:0:2::1", 5060))
    assert failures(desk)["wrong"] == 4


def test_guesses_come_back_evenly_over_the_window() -> None:
    desk = desk_with()
    for n in range(4):
        guess(desk, "alice", f"wrong{n}")
    desk.tick(201)
    for n in range(2):
        guess(desk, "alice", f"more{n}")
    assert failures(desk) == {"wrong": 4, "limited": 2}


def test_source_that_guesses_on_and_on_is_answered_no_more_but_a_first_request_is() -> None:
    desk = desk_with()
    sent = 0
    for n in range(20):
        value = desk.credentials(b"REGISTER", DOMAIN, password=f"wrong{n}", flow=STRANGER)  # needs a challenge: is answered
        sent += len(desk.receive(desk.request(headers=(value,)), STRANGER))
    assert sent == 3 + FEW.answered
    assert failures(desk) == {"wrong": 3, "limited": 8, "dropped": 9}


def test_registered_router_is_not_locked_out_by_guesses_from_anywhere() -> None:
    """From its own address too, where a carrier-grade NAT has others behind the same."""
    desk = desk_with()
    assert desk.register(HOME).status == 200
    for n in range(40):
        guess(desk, "alice", f"wrong{n}", Flow("UDP", 0, f"198.51.100.{n}", 5060))
    for n in range(9):
        guess(desk, f"name{n}", "wrong", Flow("UDP", 0, ROUTER.host, 40000 + n))
    assert {"user", "source"} <= {key[1] for key in desk.engine.desk.counters if key[0] == "guesses_limited"}
    assert desk.register(HOME).status == 200
    value = desk.credentials(b"INVITE", DIALLED)
    sent = desk.receive(desk.request(b"INVITE", DIALLED, headers=(value, (b"Contact", HOME)), call_id=b"a-call"))
    assert [message.status for message in sent if isinstance(message, Response)] == []
    assert any(isinstance(action, TakeSlot) for action in desk.actions)


def test_registered_router_after_a_restart_of_the_node_is_known_by_its_binding() -> None:
    desk = desk_with()
    desk.register(HOME)
    binding = desk.engine.desk.location.bindings("alice", desk.utc_ms)[0]
    fresh = desk_with()
    fresh.engine.bindings_read([("alice", binding)], fresh.now, own_too=True)
    for n in range(9):
        guess(fresh, "alice", f"wrong{n}", Flow("UDP", 0, f"198.51.100.{n}", 5060))
    assert fresh.register(HOME).status == 200


def test_router_with_a_new_address_is_known_by_the_call_id_of_its_binding() -> None:
    """RFC 3261 §10.2.4: a client uses one Call-ID for all its registrations."""
    desk = desk_with()
    desk.register(HOME, call_id=b"of-the-router")
    for n in range(9):
        guess(desk, "alice", f"wrong{n}", Flow("UDP", 0, f"198.51.100.{n}", 5060))
    moved = Flow("UDP", 0, "203.0.113.200", 5060)
    contact = b"<sip:alice@203.0.113.200>"
    assert desk.register(contact, flow=moved).status == 401
    assert desk.register(contact, flow=moved, call_id=b"of-the-router").status == 200


def test_known_source_has_a_budget_of_its_own_that_ends_too() -> None:
    desk = desk_with()
    desk.register(HOME)
    for n in range(5):
        guess(desk, "alice", f"wrong{n}", ROUTER)
    assert failures(desk) == {"wrong": 3, "limited": 2}
    assert desk.register(HOME).status == 401
    desk.tick(601)
    assert desk.register(HOME).status == 200


def test_neighbour_behind_the_routers_address_has_no_more_guesses_for_its_registrations() -> None:
    desk = desk_with()
    neighbour = ROUTER._replace(port=40000)
    for n in range(11):
        assert desk.register(HOME).status == 200
        guess(desk, "alice", f"wrong{n}", neighbour)
    assert failures(desk) == {"wrong": 3, "limited": 8}
    assert desk.register(HOME).status == 200


def test_forged_source_uses_up_nobodys_guesses() -> None:
    """Who writes another's address into a datagram never sees a nonce that is good from there."""
    desk = desk_with()
    value = desk.credentials(b"REGISTER", DOMAIN, password="wrong", flow=STRANGER)
    for n in range(20):
        answer = desk.answer(desk.request(headers=(value,), call_id=b"%d" % n), ROUTER)
        assert b"stale=true" in answer.lines(b"www-authenticate")[0]
    assert failures(desk) == {"forged": 20}
    assert desk.register(HOME).status == 200


def test_emergency_call_of_a_live_binding_is_not_challenged_whatever_was_guessed() -> None:
    """docs/design.md, invariant 1."""
    desk = desk_with()
    desk.register(HOME)
    for n in range(30):
        value = desk.credentials(b"REGISTER", DOMAIN, password=f"wrong{n}", flow=ROUTER)
        desk.receive(desk.request(headers=(value,)), ROUTER)
    assert failures(desk)["dropped"] > 0
    assert emergency(desk, ROUTER)


def test_emergency_call_with_the_right_password_passes_every_limit() -> None:
    desk = desk_with()
    for n in range(30):
        value = desk.credentials(b"REGISTER", DOMAIN, password=f"wrong{n}", flow=STRANGER)
        desk.receive(desk.request(headers=(value,)), STRANGER)
    uri = b"sip:112@sip.test"
    value = desk.credentials(b"INVITE", uri, flow=STRANGER)
    assert emergency(desk, STRANGER, value)
    wrong = desk.credentials(b"INVITE", uri, password="wrong", flow=STRANGER)
    assert not emergency(desk, STRANGER, wrong)


def emergency(desk: Desk, flow: Flow, *headers: tuple[bytes, bytes]) -> bool:
    """Whether a call for help goes out to the centre."""
    contact = (b"Contact", b"<sip:alice@203.0.113.1>")
    sent = desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", headers=(contact, *headers), call_id=b"help"), flow)
    return any(isinstance(message, Request) and message.method == b"INVITE" for message in sent)


def test_guess_tables_stay_within_their_bound_and_say_what_they_forgot() -> None:
    desk = desk_with(replace(FEW, entries=10))
    for n in range(40):
        guess(desk, f"name{n}", "wrong", Flow("UDP", 0, f"198.51.100.{n}", 5060))
    guesses = desk.engine.auth.guesses
    assert max(guesses.sizes().values()) == 10
    assert guesses.forgotten == 3 * 30


# Nonces


def test_nonce_is_good_at_another_node_and_after_a_restart_without_another_challenge() -> None:
    first, second = Desk(), Desk()
    value = first.credentials(b"REGISTER", DOMAIN)
    assert second.answer(second.request(headers=(value, (b"Contact", HOME)))).status == 200


def test_nonce_of_before_the_nodes_shared_a_secret_stays_good() -> None:
    desk = Desk()
    value = desk.credentials(b"REGISTER", DOMAIN)
    desk.engine.auth.rekey(b"the secret of the other nodes, 32")
    assert desk.answer(desk.request(headers=(value, (b"Contact", HOME)))).status == 200


def test_change_of_the_secret_costs_one_challenge_that_says_stale() -> None:
    desk = Desk()
    value = desk.credentials(b"REGISTER", DOMAIN)
    desk.engine.auth.rekey(b"the secret of the other nodes, 32")
    desk.engine.auth.rekey(b"the secret of yet others, 32 byt")
    answer = desk.answer(desk.request(headers=(value, (b"Contact", HOME))))
    assert b"stale=true" in answer.lines(b"www-authenticate")[0]
    again = parse_challenge(answer.lines(b"www-authenticate")[0])
    value = (
        b"Authorization",
        write_credentials(again, method=b"REGISTER", uri=DOMAIN, user="alice", password="ecila", cnonce=b"c", nc=1),
    )
    assert desk.answer(desk.request(headers=(value, (b"Contact", HOME)))).status == 200


@pytest.mark.parametrize("method", [b"REGISTER", b"INVITE"])
def test_captured_request_is_refused_elsewhere_also_by_a_node_that_never_saw_it(method: bytes) -> None:
    desk, fresh = Desk(), Desk()
    uri = DOMAIN if method == b"REGISTER" else DIALLED
    value = desk.credentials(method, uri, flow=ROUTER)
    data = desk.request(method, uri, headers=(value, (b"Contact", HOME)))
    for node in (desk, fresh):
        assert node.answer(data, STRANGER).status in (401, 407)
        assert not [a for a in node.actions if type(a).__name__ in ("SaveBinding", "Journal")]


def test_captured_request_is_refused_at_its_own_source_once_it_was_used() -> None:
    desk = Desk()
    value = desk.credentials(b"REGISTER", DOMAIN)
    assert desk.answer(desk.request(headers=(value, (b"Contact", HOME)))).status == 200
    again = desk.answer(desk.request(headers=(value, (b"Contact", b"<sip:evil@203.0.113.1:5099>")), call_id=b"evil"))
    assert again.status == 401
    assert b"stale=true" in again.lines(b"www-authenticate")[0]


def test_credentials_of_another_method_or_address_do_not_pass() -> None:
    desk = Desk()
    name, value = desk.credentials(b"REGISTER", DOMAIN)
    refused = desk.answer(desk.request(b"INVITE", DIALLED, headers=((b"Proxy-Authorization", value), (b"Contact", HOME))))
    assert refused.status == 407
    assert name == b"Authorization"
    other = desk.credentials(b"INVITE", DIALLED)
    assert (
        desk.answer(desk.request(b"INVITE", b"sip:+491715550000@sip.test", headers=(other, (b"Contact", HOME)))).status == 407
    )


def test_only_the_first_credentials_for_our_realm_are_looked_at() -> None:
    """One request is one guess."""
    desk = desk_with()
    challenge = parse_challenge(challenge_of(desk, "alice").lines(b"www-authenticate")[0])
    tries = [
        (
            b"Authorization",
            write_credentials(challenge, method=b"REGISTER", uri=DOMAIN, user="alice", password=p, cnonce=b"c", nc=1),
        )
        for p in ("wrong", "ecila")
    ]
    assert desk.answer(desk.request(headers=tuple(tries)), STRANGER).status == 401
    assert failures(desk) == {"wrong": 1}


@pytest.mark.parametrize("qop", [b"auth-int", b"AUTH-INT"])
def test_auth_int_is_neither_offered_nor_taken(qop: bytes) -> None:
    desk = Desk()
    value = desk.credentials(b"REGISTER", DOMAIN)[1]
    assert b"auth-int" not in value
    answer = desk.answer(desk.request(headers=((b"Authorization", value.replace(b"qop=auth", b"qop=" + qop)),)))
    assert answer.status == 401


def test_guesses_of_long_ago_are_forgiven() -> None:
    desk = desk_with()
    for n in range(4):
        guess(desk, "alice", f"wrong{n}")
    desk.tick(604_800)
    assert guess(desk, "alice", "ecila").status == 200


@pytest.mark.parametrize("has_count", [True, False])
def test_credentials_that_one_worker_took_are_a_replay_at_the_others(has_count: bool) -> None:
    """RFC 7616 §3.4. What a replay may change, such as its Call-ID, chooses the worker."""
    desk, other = desk_with(worker=1), desk_with(worker=2)
    desk.engine.crew.tell = lambda word: other.actions.extend(other.engine.crew.hear(word, other.now))
    name, value = desk.credentials(b"REGISTER", DOMAIN, pick=1)
    if not has_count:
        challenge = parse_challenge(b'Digest realm="x", nonce="%b", algorithm=MD5' % NONCE.findall(value)[0])
        challenge = replace(challenge, realm="sip.test")
        value = write_credentials(challenge, method=b"REGISTER", uri=DOMAIN, user="alice", password="ecila", cnonce=b"", nc=1)
    headers = ((name, value), (b"Contact", HOME))
    assert desk.answer(desk.request(headers=headers)).status == 200
    assert other.answer(other.request(headers=headers, call_id=b"call-2")).status == 401
    assert failures(other)["replayed"] == 1
