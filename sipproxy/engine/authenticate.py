"""Digest authentication of accounts (RFC 3261 §22, RFC 7616, RFC 8760) against the snapshot's HA1 values.

Pure. What is proven is an account; whether that account may do what it asks is decided elsewhere. Nothing here tells whether an
account exists, neither by what is answered nor by the work done: an unknown user, a wrong response, a barred line get the same
status and, for one name, always the same challenges, after one digest of the same size and one comparison. An account whose
stored hashes verify only some algorithms is offered those alone, because a client that prefers another would be locked out; so
each name without an account is given, by a keyed hash of it, the algorithms of some account: as many names as accounts have
each set. Guesses are limited (`engine.guesses`), but never those of a call for help (design: invariant 1).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.engine.guesses import Guesses, counted_as
from sipproxy.engine.location import ident_of
from sipproxy.sip.digest import ALGORITHMS, Credentials, NonceState, credentials_of, verify, write_challenge
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import source_of
from sipproxy.sip.mac import Mac
from sipproxy.sip.uri import Uri, parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.model import Account
    from sipproxy.engine.state import Desk, Headers
    from sipproxy.sip.digest import NonceSource
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request

__all__ = ["Authenticator", "Challenged", "Outcome", "Proven"]

RECOUNT_S = 60.0  # between two counts of which algorithms accounts have: 10 ms for 10,000 of them
# An HA1 that no password has, as long as a real one: the time taken must not tell who exists.
_NOBODY = {"MD5": "0" * 32, "SHA-256": "0" * 64, "SHA-512-256": "0" * 64}
OK = NonceState.OK


@dataclass(slots=True)
class Proven:
    """The request carries valid credentials of this account. Not to be changed, as `Challenged`."""

    account: Account


@dataclass(slots=True)
class Challenged:
    """No proof: answer `status` with these challenges; nothing when it is 0, which a source that guesses on and on gets.

    `why` is for counters: missing, stale, replayed, forged, wrong, limited, dropped, malformed.
    """

    status: int
    headers: Headers
    why: str


Outcome = Proven | Challenged


class Authenticator:
    """Checks credentials for our realm and writes challenges. `secret` is what unknown names get their algorithms by: one for
    all nodes, or a name would be told from an account by asking two of them."""

    def __init__(self, desk: Desk, nonces: NonceSource, secret: bytes) -> None:
        self._desk = desk
        self._nonces = nonces
        self._names = Mac(hashlib.sha256(b"names" + secret).digest())
        self.guesses = Guesses(desk.settings.guesses)
        # Is told what the node's other workers have to know too: a nonce and the count that was used with it, 0 without one.
        self.tell_used: Callable[[bytes, int], None] = lambda nonce, count: None  # noqa: ARG005
        desk.gave_nonce = self._gave
        self._offers: list[tuple[int, tuple[str, ...]]] = []  # algorithms, and how many accounts have these or a set before
        self._counted = (0, -RECOUNT_S)  # policy version, and when

    def _gave(self, nonce: bytes, flow: Flow) -> bool:
        """Whether the nonce was given to this source, and lives. Cheap: what came with it is not looked at."""
        utc_s = self._desk.now.utc_ms // 1000
        return self._nonces.inspect(nonce, utc_s, source_of(flow.host).encode()) is OK

    def used_elsewhere(self, nonce: bytes, count: int) -> None:
        """Another worker of this node took credentials with this nonce and count, 0 without one: they are good no more."""
        self._nonces.use(nonce, count or None, self._desk.now.utc_ms // 1000)

    def rekey(self, key: bytes) -> None:
        """Use the secret that all nodes share from now on."""
        self._nonces.rekey(key)
        self._names = Mac(hashlib.sha256(b"names" + key).digest())

    def check(self, request: Request, flow: Flow, *, proxy: bool, user_hint: str, emergency: bool = False) -> Outcome:
        """Prove the request's account. `user_hint` is who it claims to be, which selects the algorithms offered.

        `proxy` selects Proxy-Authorization and 407 against Authorization and 401. An `emergency` call is refused by no limit.
        """
        source = source_of(flow.host)
        outcome = self._credentials(request, flow, source, proxy=proxy, emergency=emergency)
        if isinstance(outcome, Proven):
            return outcome
        why, user = outcome
        if why == "limited":
            self._desk.drops.offended(flow.host, "guesses")
        if why == "limited" and not self.guesses.may_answer(source, self._desk.now.mono):
            why = "dropped"
        self._desk.count("auth_failures", why)
        if why == "dropped":
            return Challenged(0, (), why)
        return self._challenge(why, source, proxy=proxy, user=user or user_hint)

    def account(self, request: Request, flow: Flow, claimed: Uri, *, proxy: bool) -> Account | None:
        """The account that the request proves; None when it does not, which is answered here. `claimed` names who it is of."""
        outcome = self.check(request, flow, proxy=proxy, user_hint=claimed.user_text)
        if isinstance(outcome, Proven):
            return outcome.account
        if outcome.status:
            self._desk.reply(request, flow, outcome.status, headers=outcome.headers)
        return None

    def _credentials(
        self, request: Request, flow: Flow, source: str, *, proxy: bool, emergency: bool
    ) -> Proven | tuple[str, str]:
        name = b"proxy-authorization" if proxy else b"authorization"
        if name not in request.first_line:
            return "missing", ""
        ours: Credentials | None = None
        for line in request.lines_of(name)[:8]:
            try:
                credentials = credentials_of(line)
            except ParseError:
                return "malformed", ""
            if ours is None and credentials.realm == self._desk.settings.realm:
                ours = credentials
        if ours is None:
            return "missing", ""
        return self._verify(request, ours, flow, source, emergency=emergency)

    def _verify(
        self, request: Request, credentials: Credentials, flow: Flow, source: str, *, emergency: bool
    ) -> Proven | tuple[str, str]:
        desk = self._desk
        user, now, utc_s = credentials.username, desk.now.mono, desk.now.utc_ms // 1000
        state = self._nonces.inspect(credentials.nonce, utc_s, source.encode())
        if state is not OK:
            # Not looked at any further: it guesses nothing, costs no digest, and who knows the password comes again unasked.
            return state.name.lower(), user
        known = self._known_as(request, user, flow, source)
        counted = counted_as(user)
        spent = self.guesses.spent(counted, source, now, known)
        if spent:
            desk.count("guesses_limited", spent if not emergency else "emergency")
            if not emergency:
                return "limited", user
        account = desk.snapshot.accounts.get(user)
        algorithm = credentials.algorithm if credentials.algorithm in ALGORITHMS else "MD5"
        # RFC 8760 §2.4: what is not offered is not taken, or the weakest would do for everybody.
        stored = account.ha1.get(algorithm) if account is not None and algorithm in desk.settings.algorithms else None
        right = verify(credentials, request.method, stored or _NOBODY[algorithm]) and stored is not None
        if not right or not self._uri_fits(request, credentials):
            self.guesses.wrong(counted, source, now, known)
            return "wrong", user
        state = self._nonces.use(credentials.nonce, credentials.nc, utc_s)
        if state is not OK:
            return state.name.lower(), user
        self.tell_used(credentials.nonce, credentials.nc or 0)
        assert account is not None
        self.guesses.right(account.user, source, now)  # the account's own text: what is kept for a day is there already
        return Proven(account)

    def _known_as(self, request: Request, user: str, flow: Flow, source: str) -> str:
        """As what the account's own device, or one beside it, is known: by the flow of a binding; as the REGISTER that goes on
        with the Call-ID of one (RFC 3261 §10.2.4), which nobody else knows, from anywhere; by the source of one, or because it
        proved the password from there lately. "" for a stranger."""
        desk = self._desk
        call_id = ident_of(request) if request.method == b"REGISTER" else ""
        beside = self.guesses.has_proven(user, source, desk.now.mono)
        for binding in desk.location.bindings(user, desk.now.utc_ms):
            if binding.flow == flow:
                return str(flow)
            if binding.call_id == call_id:
                return "id:" + call_id[:128]
            beside = beside or source_of(binding.flow.host) == source
        return source if beside else ""

    def _uri_fits(self, request: Request, credentials: Credentials) -> bool:
        """RFC 7616 §3.4: the digest's uri is the Request-URI; or, as SIPp and some routers write it, its bare host and port."""
        if credentials.uri == request.uri:
            return True
        try:
            given = parse_uri(credentials.uri)
            target = request.parsed_uri
        except ParseError:
            return False
        return self._same_domain(given, target)

    def _same_domain(self, given: Uri, target: Uri) -> bool:
        if not given.is_sip or not target.is_sip:
            return False
        if given.user is not None and given.user != target.user:
            return False
        if given.host_text == target.host_text and (given.port or 5060) == (target.port or 5060):
            return True
        settings = self._desk.settings
        here = given.host_text in settings.domains or settings.is_ours(given.host_text, given.port)
        return here and (target.host_text in settings.domains or settings.is_ours(target.host_text, target.port))

    def _challenge(self, why: str, source: str, *, proxy: bool, user: str) -> Challenged:
        desk = self._desk
        nonce = self._nonces.issue(desk.now.utc_ms // 1000, desk.new_token(8), source.encode())
        name = b"Proxy-Authenticate" if proxy else b"WWW-Authenticate"
        # RFC 7616 §3.3: the nonce is not ours or not good any more; no client has to ask for another password.
        stale = why in ("stale", "replayed", "forged")
        headers = [(name, write_challenge(desk.settings.realm, nonce, a, stale=stale)) for a in self._offered(user)]
        return Challenged(407 if proxy else 401, headers, why)

    def _offered(self, user: str) -> tuple[str, ...]:
        """The algorithms for a name: those that its account's hashes verify, and as it falls for a name that has none."""
        desk = self._desk
        self._count_offers()
        digest = self._names.digest(user.encode("utf-8", "surrogateescape"))
        mark = int.from_bytes(digest[:8], "big") * self._offers[-1][0] >> 64
        fallen = self._offers[-1][1]
        for upto, offered in self._offers:
            if mark < upto:
                fallen = offered
                break
        account = desk.snapshot.accounts.get(user) or (desk.snapshot.account_of(user) if user.startswith("+") else None)
        return self._usable(account) or fallen if account is not None else fallen

    def _usable(self, account: Account) -> tuple[str, ...]:
        ha1 = account.ha1
        return tuple([algorithm for algorithm in self._desk.settings.algorithms if algorithm in ha1])

    def _count_offers(self) -> None:
        """How many accounts are offered what, in the order of the sets' names."""
        desk = self._desk
        version, at = self._counted
        if self._offers and (version == desk.snapshot.version or desk.now.mono - at < RECOUNT_S):
            return
        counts = Counter(usable for account in desk.snapshot.accounts.values() if (usable := self._usable(account)))
        self._offers, upto = [], 0
        for offered, count in sorted(counts.items()) or [(desk.settings.algorithms, 1)]:
            upto += count
            self._offers.append((upto, offered))
        self._counted = (desk.snapshot.version, desk.now.mono)
