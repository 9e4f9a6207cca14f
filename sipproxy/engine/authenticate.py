"""Digest authentication of accounts (RFC 3261 §22, RFC 7616, RFC 8760) against the snapshot's HA1 values.

Pure. What is proven is an account; whether that account may do what it asks is decided elsewhere. An unknown user and a
wrong response are answered alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.sip.digest import Credentials, NonceState, parse_credentials, verify, write_challenge
from sipproxy.sip.errors import ParseError
from sipproxy.sip.uri import Uri, parse_uri

if TYPE_CHECKING:
    from policy.model import Account
    from sipproxy.engine.state import Desk, Headers
    from sipproxy.sip.digest import NonceSource
    from sipproxy.sip.message import Request

__all__ = ["Authenticator", "Challenged", "Outcome", "Proven"]


@dataclass(frozen=True, slots=True)
class Proven:
    """The request carries valid credentials of this account."""

    account: Account


@dataclass(frozen=True, slots=True)
class Challenged:
    """No proof: answer `status` with these challenges. `why` is for counters: missing, stale, replayed, wrong, malformed."""

    status: int
    headers: Headers
    why: str


Outcome = Proven | Challenged


class Authenticator:
    """Checks credentials for our realm and writes challenges. The nonce source holds the only state."""

    def __init__(self, desk: Desk, nonces: NonceSource) -> None:
        self._desk = desk
        self._nonces = nonces

    def check(self, request: Request, *, proxy: bool, user_hint: str) -> Outcome:
        """Prove the request's account. `user_hint` is who it claims to be, which selects the algorithms offered.

        `proxy` selects Proxy-Authorization and 407 against Authorization and 401.
        """
        outcome = self._credentials(request, proxy=proxy)
        if isinstance(outcome, Proven):
            return outcome
        why, user = (outcome, user_hint) if isinstance(outcome, str) else (outcome[0], outcome[1])
        self._desk.count("auth_failures", why)
        return self._challenge(why, proxy=proxy, user=user)

    def _credentials(self, request: Request, *, proxy: bool) -> Proven | str | tuple[str, str]:
        ours: list[Credentials] = []
        for value in request.lines(b"proxy-authorization" if proxy else b"authorization")[:8]:
            try:
                credentials = parse_credentials(value)
            except ParseError:
                return "malformed"
            if credentials.realm == self._desk.settings.realm:
                ours.append(credentials)
        if not ours:
            return "missing"
        return self._verify(request, ours[0])

    def _verify(self, request: Request, credentials: Credentials) -> Proven | tuple[str, str]:
        desk = self._desk
        user = credentials.username
        account = desk.snapshot.accounts.get(user)
        known = account.ha1.get(credentials.algorithm) if account is not None else None
        # The digest is computed for an unknown user too: the time taken must not tell who exists.
        right = verify(credentials, request.method, known or "0" * 32) and known is not None
        if not right or not self._uri_fits(request, credentials):
            return "wrong", user
        state = self._nonces.check(credentials.nonce, credentials.nc, desk.now.utc_ms // 1000)
        if state is not NonceState.OK:
            return ("stale" if state is NonceState.STALE else state.name.lower()), user
        assert account is not None
        return Proven(account)

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

    def _challenge(self, why: str, *, proxy: bool, user: str) -> Challenged:
        desk = self._desk
        account = desk.snapshot.accounts.get(user)
        # A challenge that the account's stored hashes cannot verify would lock out a client that prefers it.
        offered = [a for a in desk.settings.algorithms if account is None or a in account.ha1]
        nonce = self._nonces.issue(desk.now.utc_ms // 1000, desk.new_token(8))
        name = b"Proxy-Authenticate" if proxy else b"WWW-Authenticate"
        # RFC 7616 §3.3: the digest was right and only its nonce is not ours, as of a router that comes from another node.
        stale = why in ("stale", "replayed", "forged")
        headers = [(name, write_challenge(desk.settings.realm, nonce, a, stale=stale)) for a in offered]
        return Challenged(407 if proxy else 401, headers, why)
