"""Digest towards a carrier that asks for it (RFC 3261 §22.2, RFC 8760): a trunk route's challenge is answered here, once.

Pure. The customer has no credentials for the carrier, and the route's must not be known to it: 401 and 407 of a route with
credentials end here. What the answer changes in the dialog's CSeq is in cseq.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sipproxy.engine.forward import loop_mark_of, via_of
from sipproxy.sip.build import Editor
from sipproxy.sip.digest import ALGORITHMS, Challenge, parse_challenge, write_credentials
from sipproxy.sip.errors import ParseError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import ClientUser
    from sipproxy.sip.message import Request, Response

__all__ = ["Answered", "AuthenticatedBye", "answer_challenge", "challenge_of", "credentials_for"]

MAX_CHALLENGES = 8  # looked at in one response


class Answered(NamedTuple):
    """The request that was sent again: its client transaction's key, itself, and the header that was added."""

    key: Hashable
    request: Request
    credentials: tuple[bytes, bytes]


def challenge_of(route: TrunkRoute, response: Response) -> Challenge | None:
    """The first challenge of a 401 or 407 that the route's credentials can answer; the order is the peer's (RFC 8760 §2.4)."""
    name = b"www-authenticate" if response.status == 401 else b"proxy-authenticate"
    for value in response.lines(name)[:MAX_CHALLENGES]:
        try:
            challenge = parse_challenge(value)
        except ParseError:
            continue
        if route.realm and challenge.realm != route.realm:
            continue
        if challenge.algorithm in ALGORITHMS and (not challenge.qop or "auth" in challenge.qop):
            return challenge
    return None


def credentials_for(
    desk: Desk, route: TrunkRoute, response: Response, method: bytes, uri: bytes, *, again: bool
) -> tuple[bytes, bytes] | None:
    """The header that answers the response's challenge.

    None where the route cannot answer it, or `again`, when what was answered already is refused: only a stale nonce is then
    worth another answer (RFC 7616 §3.3).
    """
    challenge = challenge_of(route, response) if route.user else None
    if challenge is None or (again and not challenge.stale):
        return None
    value = write_credentials(
        challenge, method=method, uri=uri, user=route.user, password=route.password, cnonce=desk.token().encode(), nc=1
    )
    return (b"Authorization" if response.status == 401 else b"Proxy-Authorization"), value


def answer_challenge(desk: Desk, name: str, response: Response, user: ClientUser) -> Answered | None:
    """Send the request, whose response its user is being told, again with the credentials of the trunk route `name`.

    A new client transaction of the same user, CSeq one higher (§22.2). None when there is nothing to answer with.
    """
    route, client = desk.trunks.route(name), desk.transactions.told
    if route is None or not route.user or client is None:
        return None
    sent = client.request
    header = credentials_for(desk, route, response, sent.method, sent.uri, again=client.challenged > 0)
    via = via_of(desk, client.target, loop_mark_of(sent.via.branch))
    if header is None or via is None or client.challenged > 1:
        desk.trunks.challenged(name, "refused")
        return None
    value, branch = via
    editor = Editor(sent)
    if client.challenged:
        _drop_last(editor, sent)
    editor.replace_first(b"Via", value)
    editor.set(b"CSeq", b"%d %s" % (sent.cseq.number + 1, sent.method))
    editor.append(*header)
    request = editor.to_request(max_headers=desk.settings.max_headers + 16)
    key = desk.transactions.new_client(request, branch, client.target, user, desk.now.mono, challenged=client.challenged + 1)
    desk.trunks.challenged(name, "answered")
    return Answered(key, request, header)


def _drop_last(editor: Editor, sent: Request) -> None:
    """Take off what answered the challenge before: the last line of its name."""
    for name, header in ((b"authorization", b"Authorization"), (b"proxy-authorization", b"Proxy-Authorization")):
        values = sent.lines(name)
        if values:
            editor.remove(name)
            for value in values[:-1]:
                editor.append(header, value)


class AuthenticatedBye:
    """User of a BYE of ours towards the trunk route `name`: its challenge is answered, its outcome changes nothing."""

    def __init__(self, desk: Desk, name: str) -> None:
        self._desk, self._name = desk, name

    def response(self, _key: Hashable, response: Response, /) -> None:
        if response.status in (401, 407):
            answer_challenge(self._desk, self._name, response, self)

    def failed(self, _key: Hashable, /, *, timed_out: bool) -> None:
        """Take no notice: the call is over either way."""
