"""Registration of this node at a carrier that wants it (RFC 3261 §10.2): sent at start, refreshed, tried again with back-off.

Pure. One binding for each trunk route, our listener's address as its Contact. A binding is not removed when the node stops: it
ends by itself, and a node that comes back soon finds it in place.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sipproxy.engine.addresses import MAX_TRIED, retry_after_s
from sipproxy.engine.forward import hop_uri, listener_of, via_of
from sipproxy.engine.trunk_auth import credentials_for
from sipproxy.sip.build import write_request
from sipproxy.sip.errors import ParseError
from sipproxy.sip.message import Request, parse_message
from sipproxy.sip.timers import Alarm

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.sip.message import Response

__all__ = ["Registration", "RegistrationState"]

FIRST_BACKOFF_S, MAX_BACKOFF_S = 5.0, 300.0
MAX_EXPIRES_S = 7 * 86400
MARGIN_S = 30.0  # before the end of a short binding, so that a lost refresh can be repeated


class RegistrationState(StrEnum):
    UNREGISTERED = "unregistered"
    REGISTERED = "registered"
    REFUSED = "refused"
    SILENT = "silent"  # no answer, or nothing could be sent


class Registration:
    """One route's binding at its carrier. `heard(status)` is told of each final answer."""

    def __init__(self, desk: Desk, route: TrunkRoute, heard: Callable[[int], None]) -> None:
        self._desk, self._route, self._heard = desk, route, heard
        self.state = RegistrationState.UNREGISTERED
        self.status = 0  # of the last final answer
        self.expires_at_ms: int | None = None
        self._asked_s = route.expires_s
        self._backoff_s = FIRST_BACKOFF_S
        self._call_id = b""
        self._cseq = 0
        self._key: Hashable = None  # of the REGISTER under way
        self._answers = 0  # to challenges in this round
        self._to = route.hop  # the address that was asked last
        self._tried = 0  # addresses in this round that failed
        self._next_round = Alarm(self.send)
        desk.queue.set(self._next_round, 0.0)

    def view(self) -> dict[str, object]:
        state = str(self.state)
        if self.state is RegistrationState.REFUSED:
            state += f" {self.status}"
        return {"registration": state, "expires_at_ms": self.expires_at_ms if self.is_valid else None}

    @property
    def is_valid(self) -> bool:
        """Whether the carrier holds a binding, as far as its last answer says."""
        return self.expires_at_ms is not None and self.expires_at_ms > self._desk.now.utc_ms

    def send(self) -> None:
        """Begin a round: ask for the binding, or for its refresh."""
        self._answers = self._tried = 0
        self._send(None)

    def _send(self, credentials: tuple[bytes, bytes] | None) -> None:
        desk, route = self._desk, self._route
        self._to = desk.addresses.choose(route.hop)[0]
        via, listener = via_of(desk, self._to), listener_of(desk.settings, self._to)
        if via is None or listener is None:
            self._again(RegistrationState.SILENT)
            return
        self._call_id = self._call_id or desk.token().encode()
        self._cseq += 1  # §10.2: one Call-ID, ascending numbers
        value, branch = via
        address = b"<sip:%s@%s>" % (route.user.encode(), self._domain)
        transport = b"" if listener.transport == "UDP" else b";transport=" + listener.transport.lower().encode()
        headers = [
            (b"Via", value),
            (b"Max-Forwards", b"70"),
            (b"From", address + b";tag=" + desk.token().encode()),
            (b"To", address),
            (b"Call-ID", self._call_id),
            (b"CSeq", b"%d REGISTER" % self._cseq),
            (b"Contact", b"<sip:%s@%s%s>" % (route.user.encode(), listener.sent_by, transport)),
            (b"Expires", b"%d" % self._asked_s),
            *((credentials,) if credentials is not None else ()),
        ]
        request = parse_message(write_request(b"REGISTER", self._uri, headers))
        assert isinstance(request, Request)
        self._key = desk.transactions.new_client(request, branch, self._to, self, desk.now.mono)

    @property
    def _domain(self) -> bytes:
        return self._route.domain.encode() if self._route.domain else hop_uri(self._route.hop).partition(b":")[2]

    @property
    def _uri(self) -> bytes:
        return b"sip:" + self._domain

    def response(self, key: Hashable, response: Response, /) -> None:
        """The carrier's answer."""
        if key != self._key or response.status < 200:
            return
        self._key = None
        if response.status == 503 and self._elsewhere("503", retry_after_s(response.first(b"retry-after"))):
            return
        self._desk.addresses.heard(self._to, response.status)
        self.status = response.status
        self._heard(response.status)
        if response.is_success:
            self._registered(response)
        elif response.status in (401, 407) and self._authenticate(response):
            return
        elif response.status == 423 and self._longer(response):
            self.send()
        else:
            self._again(RegistrationState.REFUSED, retry_after=response.first(b"retry-after"))

    def failed(self, key: Hashable, /, *, timed_out: bool) -> None:
        """Silence, or a transport failure."""
        if key == self._key:
            self._key = None
            if self._elsewhere("timeout" if timed_out else "transport"):
                return
            self._desk.trunks.failed(self._route.name, "timeout" if timed_out else "transport")
            self._again(RegistrationState.SILENT)

    def _elsewhere(self, why: str, hold_s: float | None = None) -> bool:
        """This address failed: whether another one that lives is asked (RFC 3263 §4.3)."""
        addresses = self._desk.addresses
        addresses.failed(self._to, why, hold_s=hold_s)
        self._tried += 1
        following = addresses.choose(self._route.hop)[0]
        if self._tried >= MAX_TRIED or addresses.is_dead(following) or following == self._to:
            return False
        self._answers = 0
        self._send(None)
        return True

    def _authenticate(self, response: Response) -> bool:
        again = self._answers > 0
        header = credentials_for(self._desk, self._route, response, b"REGISTER", self._uri, again=again)
        if header is None or self._answers > 1:
            self._desk.trunks.challenged(self._route.name, "refused")
            return False
        self._answers += 1
        self._desk.trunks.challenged(self._route.name, "answered")
        self._send(header)
        return True

    def _longer(self, response: Response) -> bool:
        """§10.2.8: 423 names what the carrier wants at least. False when that is no more than we asked for."""
        least = _number(response.first(b"min-expires"))
        if least is None or least <= self._asked_s:
            return False
        self._asked_s = least
        return True

    def _registered(self, response: Response) -> None:
        desk = self._desk
        granted = self._granted(response)
        if granted is None or granted < 1:
            self._again(RegistrationState.REFUSED)
            return
        if self.state is not RegistrationState.REGISTERED:
            desk.note("info", "trunk_registered", trunk=self._route.name, expires_s=granted)
        self.state = RegistrationState.REGISTERED
        self.expires_at_ms = desk.now.utc_ms + granted * 1000
        self._backoff_s = FIRST_BACKOFF_S
        early = min(max(granted / 5, MARGIN_S), granted / 2)
        desk.queue.set(self._next_round, desk.now.mono + granted - early)

    def _granted(self, response: Response) -> int | None:
        """§10.2.4: the lifetime of our Contact, else Expires, else what we asked for."""
        listener = listener_of(self._desk.settings, self._to)
        mine = b"@" + listener.sent_by if listener is not None else b""
        try:
            contacts = [contact for contact in response.contacts if not contact.is_star]
        except ParseError:
            contacts = []
        for contact in contacts:
            found = _number(contact.param(b"expires"))
            if found is not None and contact.uri.raw.partition(b";")[0].endswith(mine):
                return found
        found = _number(response.first(b"expires"))
        return found if found is not None else self._asked_s

    def _again(self, state: RegistrationState, *, retry_after: bytes | None = None) -> None:
        """Try once more after the back-off, or after what the carrier asks for when that is longer (§20.33)."""
        desk = self._desk
        if state is not self.state:
            desk.note("error", "trunk_not_registered", trunk=self._route.name, state=str(state), status=self.status)
        self.state = state
        wait = max(self._backoff_s, min(_number(retry_after) or 0, MAX_EXPIRES_S))
        self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)
        desk.queue.set(self._next_round, desk.now.mono + wait)


def _number(value: bytes | None) -> int | None:
    """Delta-seconds, bounded; None when there are none."""
    digits = (value or b"").partition(b";")[0].partition(b"(")[0].strip()
    return min(int(digits), MAX_EXPIRES_S) if digits.isdigit() and len(digits) <= 10 else None
