"""Registrar (RFC 3261 §10.3): contacts of an authenticated account, all of a REGISTER or nothing.

Pure. Bindings keep the flow that the REGISTER came by, so that a router behind NAT is reached by it (RFC 3581, RFC 5626). A
device may have several flows, each with a `reg-id` of its own (RFC 5626 §6). What a Path or a bulk contact is, `paths` knows.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sipproxy.engine.actions import EndSilent, RemoveBinding, SaveBinding
from sipproxy.engine.contacts import fault_of, place_of
from sipproxy.engine.location import ident_of
from sipproxy.engine.options import has_option
from sipproxy.engine.paths import bulk_fault, paths_of
from sipproxy.engine.structs import Binding
from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import parse_number
from sipproxy.sip.text import shared_text
from sipproxy.sip.uri import STAR, parse_uri, uris_equal

if TYPE_CHECKING:
    from policy.model import Account
    from sipproxy.engine.state import Desk, Headers
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.message import Request

__all__ = ["Registrar"]

SUPPORTED = b"path, outbound, gin"
INSTANCE = re.compile(rb'"<[!#-;=?-~]+>"')  # one URI, with nothing that would end it
MAX_INSTANCE_BYTES = 200
MAX_AGENT = 200  # characters of what a device calls itself
FLOW_GRACE_S = 10.0  # beyond the Flow-Timer: a choice, in which TCP repeats what was lost three times (at 1, 3 and 7 s)
MAX_REG_ID = 2**31 - 1  # RFC 5626 §4.2


class _RefusedError(Exception):
    def __init__(self, status: int, reason: bytes = b"", headers: Headers = ()) -> None:
        super().__init__(status)
        self.status, self.reason, self.headers = status, reason, headers


class Registrar:
    """Adds, refreshes, removes and lists the bindings of an account."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def register(self, request: Request, account: Account, flow: Flow) -> tuple[int, bytes, Headers]:
        """Carry out a REGISTER of a proven account. Returns status, reason phrase and headers of the response."""
        try:
            changes = self._changes(request, account, flow)
            tells_path = has_option(request, b"supported", b"path")  # what may not be readable is read before anything changes
        except _RefusedError as refused:
            return refused.status, refused.reason, refused.headers
        except ParseError as fault:
            return fault.status or 400, b"", ()
        desk = self._desk
        keeps_flows = False
        for binding in changes:
            keeps_flows = keeps_flows or bool(binding.reg_id)
            if binding.expires_at_ms > desk.now.utc_ms:
                desk.location.put(account.user, binding)
                desk.out.append(SaveBinding(account.user, binding))
            elif desk.location.remove(account.user, binding.key, is_told=True):
                desk.out.append(RemoveBinding(account.user, binding.key, desk.now.utc_ms))
        if keeps_flows and desk.settings.flow_timer_s and flow.connection:
            desk.out.append(EndSilent(flow, self._silence_s(flow)))
        headers = [(b"Supported", SUPPORTED)]
        for binding in desk.location.registered(account.user, desk.now.utc_ms):
            headers.append((b"Contact", _shown(binding, desk.now.utc_ms)))  # noqa: PERF401  nearly always one
        if tells_path:  # RFC 3327 §5.3
            headers += [(b"Path", value) for value in request.lines(b"path")]
        if desk.settings.service_routes:
            headers += [(b"Service-Route", value) for value in desk.settings.service_routes]  # RFC 3608 §6.3
        if keeps_flows:
            headers.append((b"Require", b"outbound"))  # RFC 5626 §6: the device knows by this that its flows are kept apart
            if desk.settings.flow_timer_s:
                headers.append((b"Flow-Timer", b"%d" % desk.settings.flow_timer_s))  # §5.4
        return 200, b"", headers

    def _silence_s(self, flow: Flow) -> float:
        """How long a connection may be silent whose device was told a Flow-Timer; 0 where none is registered by it any more, or
        its keep-alives are for a proxy between. RFC 5626 §5.4: "The server MUST wait for an amount of time larger"."""
        kept = any(binding.reg_id and not binding.path for _, binding in self._desk.location.at(flow))
        return self._desk.settings.flow_timer_s + FLOW_GRACE_S if kept else 0.0

    def _changes(self, request: Request, account: Account, flow: Flow) -> list[Binding]:
        """§10.3 steps 5 to 7: every binding as it would be; one with a past expiry is removed. Nothing is changed here."""
        desk = self._desk
        if not self._is_served(request):
            raise _RefusedError(404)  # step 5
        if not self._names_account(request, account):
            desk.count("registers_refused", "to")
            raise _RefusedError(403)  # step 4: the account may only change its own bindings
        if not self._names_line(request, account):
            desk.count("registers_refused", "from")
            raise _RefusedError(403, b"Third-Party Registration Not Allowed")  # step 3
        held = desk.location.registered(account.user, desk.now.utc_ms)
        paths, contacts = self._paths(request, flow), request.contacts
        for contact in contacts:
            if contact.uri is STAR:
                if len(contacts) != 1 or request.expires != 0:
                    raise _RefusedError(400, b"Contact * Needs Expires 0")  # step 6
                return [self._expired(self._in_order(request, old)) for old in held]
        changes: dict[str, Binding] = {}
        if len(contacts) > 1 and any(_Asked(contact, request).reg_id for contact in contacts):
            raise _RefusedError(400, b"One Contact Only With Reg-Id")  # RFC 5626 §4.2.1: a flow is registered by itself
        for contact in contacts:
            binding = self._binding(request, contact, held, account, flow)
            changes[binding.key] = replace(binding, path=paths) if paths else binding
        self._check_room(held, changes)
        return list(changes.values())

    def _check_room(self, held: list[Binding], changes: dict[str, Binding]) -> None:
        """Raise unless the account may have so many bindings, and the node has room for the new ones."""
        desk = self._desk
        if len(held) + len(changes) <= desk.settings.max_contacts and not desk.location.is_full:
            return  # even if all were new
        known, now_ms = {b.key for b in held}, desk.now.utc_ms
        new = gone = 0
        for key, binding in changes.items():
            if binding.expires_at_ms <= now_ms:
                gone += key in known
            elif key not in known:
                new += 1
        if len(known) + new - gone > desk.settings.max_contacts:
            raise _RefusedError(403, b"Too Many Contacts")
        if new and desk.location.is_full:
            raise _RefusedError(503, b"", ((b"Retry-After", b"60"),))

    def _is_served(self, request: Request) -> bool:
        """Whether To is an address of ours (step 5): of our domain, or of the host that the Request-URI reached us by."""
        uri, host = request.to.uri, request.to.uri.host_text
        settings = self._desk.settings
        ours = host in settings.domains or any(host == known for found in settings.listeners for known, _ in found.hosts)
        return uri.is_sip and (ours or host == request.parsed_uri.host_text)

    def _names_line(self, request: Request, account: Account) -> bool:
        """Whether From is of the account's own line: one account may register another of the line, nobody else may."""
        snapshot = self._desk.snapshot
        user = request.from_.uri.user_text
        sender = snapshot.accounts.get(user) or (snapshot.account_of(user) if user.startswith("+") else None)
        return sender is not None and sender.line == account.line

    def _names_account(self, request: Request, account: Account) -> bool:
        uri = request.to.uri
        user = uri.user_text
        if user == account.user:
            return True
        owner = self._desk.snapshot.account_of(user) if user.startswith("+") else None
        return owner is not None and owner.user == account.user

    def _paths(self, request: Request, flow: Flow) -> tuple[str, ...]:
        """The Path to be stored with what is registered (RFC 3327 §5.3). Raises ParseError."""
        if b"path" not in request.first_line:
            return ()
        paths, settings = paths_of(request), self._desk.settings
        if not paths:
            return ()
        if not any(ipaddress.ip_address(flow.host) in network for network in settings.path_sources):
            self._desk.count("registers_refused", "path")
            raise _RefusedError(403, b"Path Not Allowed")
        return tuple(path.raw.decode("latin-1") for path in paths)

    def _binding(self, request: Request, contact: NameAddr, held: list[Binding], account: Account, flow: Flow) -> Binding:
        raw = contact.uri.raw
        status, reason = bulk_fault(request, contact, account)
        if status:
            self._desk.count("registers_refused", "bulk")
            raise _RefusedError(status, reason)
        if fault := fault_of(contact):
            self._desk.count("contacts_refused", fault)
            raise _RefusedError(400, b"Bad Contact")
        asked = _Asked(contact, request)
        instance, reg_id = asked.instance, asked.reg_id
        if reg_id and not self._first_hop_keeps_flows(request):
            self._desk.count("registers_refused", "first_hop")
            raise _RefusedError(439)  # RFC 5626 §6
        old = self._same(contact, instance, reg_id, held)
        if old is not None:
            self._in_order(request, old)
        expires = self._expires(request, asked.params.get(b"expires"))
        if expires and (place := place_of(contact, flow, self._desk.settings)):
            self._desk.count("contacts_refused", place)
            raise _RefusedError(403, b"Contact Not Allowed")
        written = raw.decode("latin-1")
        new_key = f"{instance};reg-id={reg_id}" if reg_id else written
        key = old.key if old is not None else new_key
        now_ms = self._desk.now.utc_ms
        return Binding(  # by position, which takes a third of the time
            key,
            key if key == written else written,  # one text in memory, not two
            old.flow if old is not None and old.flow == flow else flow,  # one in memory, which the location service knows
            (),
            ident_of(request),
            request.cseq.number,
            now_ms + expires * 1000,
            shared_text(request.first(b"user-agent"))[:MAX_AGENT],
            _q(asked.params.get(b"q")),
            instance,
            reg_id,
            self._desk.settings.node,
            "",  # the token is made when the binding is written
            now_ms,
        )

    def _same(self, contact: NameAddr, instance: str, reg_id: int, held: list[Binding]) -> Binding | None:
        """The binding that this contact replaces: the same flow of the same device, whatever its URI (RFC 5626 §6); else
        that of an equal URI (RFC 3261 §19.1.4)."""
        for old in held if instance else ():
            if (old.instance, old.reg_id) == (instance, reg_id):
                return old
        if reg_id:
            return None
        written = contact.uri.raw.decode("latin-1")
        for old in held:
            if old.contact == written or uris_equal(parse_uri(old.contact.encode("latin-1")), contact.uri):
                return old
        return None

    @staticmethod
    def _first_hop_keeps_flows(request: Request) -> bool:
        """Whether the device's own hop holds the flow (RFC 5626 §6): this node where it came directly, else who was first to
        add a Path, and says so in it."""
        if len(request.vias) == 1:
            return True
        paths = paths_of(request)
        return bool(paths) and paths[-1].uri.param(b"ob") is not None

    def _in_order(self, request: Request, old: Binding) -> Binding:
        """§10.3 step 7: within one Call-ID the CSeq must rise, else the whole update is aborted."""
        if old.call_id == ident_of(request) and request.cseq.number <= old.cseq:
            raise _RefusedError(500, b"CSeq Out Of Order")
        return old

    def _expired(self, old: Binding) -> Binding:
        return Binding(
            key=old.key, contact=old.contact, flow=old.flow, path=(), call_id=old.call_id, cseq=old.cseq, expires_at_ms=0
        )

    def _expires(self, request: Request, value: bytes | None) -> int:
        """Seconds granted (§10.3 step 7): the contact's own wish, else the header's, else the default, within the bounds."""
        settings = self._desk.settings
        if value is not None:
            # §20.10: a malformed expires parameter means 3600.
            wish = int(value[:10]) if value.isdigit() and value.isascii() else 3600
        else:
            given = request.expires
            wish = given if given is not None else settings.default_expires_s
        if 0 < wish < settings.min_expires_s:
            raise _RefusedError(423, b"", ((b"Min-Expires", b"%d" % settings.min_expires_s),))
        return min(wish, settings.max_expires_s)


class _Asked:
    """What the parameters of a contact ask for. Raises ParseError.

    `instance` is the device that it says it is (RFC 5626 §4.1): a URI in angle brackets and quotes; "" for none. `reg_id` is
    which of its flows it registers; 0 for one that has no instance or does not keep flows apart (RFC 5626 §6).
    """

    __slots__ = ("instance", "params", "reg_id")

    def __init__(self, contact: NameAddr, request: Request) -> None:
        self.params = params = dict(contact.params[::-1])  # the first of a name counts
        value = params.get(b"+sip.instance")
        is_named = value is not None and len(value) <= MAX_INSTANCE_BYTES and INSTANCE.fullmatch(value) is not None
        self.instance = value.decode("ascii") if value is not None and is_named else ""
        number = params.get(b"reg-id")
        self.reg_id = 0
        if number is not None and self.instance and has_option(request, b"supported", b"outbound"):
            self.reg_id = parse_number(number, MAX_REG_ID, "reg-id", "RFC 5626 §4.2")


def _shown(binding: Binding, now_ms: int) -> bytes:
    """The Contact value of a binding in a response (§10.3 step 8)."""
    value = b"<%s>;expires=%d" % (binding.contact.encode("latin-1"), max(1, (binding.expires_at_ms - now_ms) // 1000))
    if binding.reg_id:
        value += b";+sip.instance=%s;reg-id=%d" % (binding.instance.encode(), binding.reg_id)
    return value


def _q(value: bytes | None) -> int:
    """A qvalue in thousandths (§20.10); 1000 when absent or malformed."""
    if not value:
        return 1000
    whole, _, fraction = value.partition(b".")
    if whole not in (b"0", b"1") or len(fraction) > 3 or (fraction and not (fraction.isdigit() and fraction.isascii())):
        return 1000
    return min(1000, int(whole) * 1000 + int(fraction.ljust(3, b"0") or b"0"))
