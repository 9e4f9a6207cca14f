"""Calls that a customer's line forwards: a 3xx of its device is followed here, as that line's own outgoing call (RFC 3261 §16.7
step 4; design §5, step 4).

Each Contact that is tried is a call of its own, a *part* of the one that was forwarded: it has its own decision, slot, bounds
and record, and its INVITE comes to it from the forwarded call within the engine (`LOOP`), as a spiral does. What the 3xx says
decides on the number alone: who calls, and who forwards, is told to the next one from what we know (RFC 5806, RFC 7044).
A 3xx of a trunk route or an emergency centre is never followed.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy import evaluate
from policy.emergency import service_of
from policy.identity import ALWAYS_SHOWN, canonical_caller
from policy.model import CallAttempt, Direction, Verdict
from sipproxy.engine import keep
from sipproxy.engine.actions import Journal
from sipproxy.engine.channels import slots_of_forwarding
from sipproxy.engine.forward import Target, strip_trust
from sipproxy.engine.privacy import Face, Faces, said_by, secrets_of, set_privacy
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import LOOP, Flow
from sipproxy.sip.headers import parse_name_addr
from sipproxy.sip.matching import client_key
from sipproxy.sip.text import text
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from policy.model import Decision, Line, Snapshot
    from sipproxy.engine.call import Call
    from sipproxy.engine.privacy import Said
    from sipproxy.engine.response_context import Branch
    from sipproxy.engine.settings import Settings
    from sipproxy.engine.setup import Setup
    from sipproxy.engine.state import Desk
    from sipproxy.sip.build import Editor
    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.message import Request, Response

__all__ = ["UNFOLLOWED", "Before", "Forwarding", "decide", "follow"]

UNFOLLOWED = 480  # what a 3xx counts as that names nobody
MAX_CONTACTS = 3  # of one 3xx that are tried
MAX_DEPTH = 5  # times that a call is forwarded, here and before it came: the limit of ISDN (ITU-T Q.732.2)
MAX_TOLD = 16  # entries of Diversion and History-Info that are looked at
ROUTING_ERROR = 25  # Q.850: exchange routing error, as for 482 and 483 in RFC 3398
CALL_REJECTED = 21  # Q.850
UNALLOCATED = 1  # Q.850
NUMBERS = frozenset({"sip", "sips", "tel"})
REFUSALS = {  # rule -> status, cause, and why
    "forward.loop": (482, ROUTING_ERROR, "the call was forwarded from that number already"),
    "forward.depth": (480, ROUTING_ERROR, f"the call was forwarded {MAX_DEPTH} times already"),
    "forward.emergency": (480, CALL_REJECTED, "a call for help is dialled by who needs it, from where he is"),
    "forward.target": (480, UNALLOCATED, "the contact is no number here"),
}


def follow(call: Call, branch: Branch[Target], response: Response) -> bool:
    """Put what a 3xx names into the target set of its call in its branch's place; False when there is nothing to follow."""
    desk = call.desk
    if branch.target.kind != "binding":
        return False
    contacts = [] if call.context.stopped else _contacts(response)
    if not contacts:
        desk.count("forwardings", "nothing_to_follow")
        branch.cause = 31  # normal, unspecified
        return False
    desk.count("forwardings", "followed")
    if len(contacts) > MAX_CONTACTS:
        desk.count("forwardings", "contacts_left_out")
    to = Flow(LOOP, call.flow.listener, call.id, 0)
    del call.context.branches[branch.key]
    call.context.groups[:0] = [[Target(uri, to, "forward", branch.target.name)] for uri in contacts[:MAX_CONTACTS]]
    desk.loops = True
    return True


def _contacts(response: Response) -> list[bytes]:
    """The URIs of the Contacts, best q first (§16.7 step 4), without their header parts; none when they cannot be read."""
    try:
        found = [contact for contact in response.contacts if not contact.is_star]
    except ParseError:
        return []
    found.sort(key=lambda contact: -_q(contact))
    return list(dict.fromkeys(contact.uri.raw.partition(b"?")[0] for contact in found))


def _q(contact: NameAddr) -> float:
    try:
        return float(contact.param(b"q") or b"1")
    except ValueError:
        return 0.0


@dataclass(frozen=True, slots=True)
class Diverted:
    """Who forwarded: what a Diversion and a History-Info say to the next one. `private` hides the number from customers."""

    number: str
    private: bool
    settings: Settings

    def put_on(self, editor: Editor, request: Request, target: Target, canonical: str) -> None:
        """Add both to a copy of the INVITE; nothing to a customer who may not know."""
        if target.is_customer and self.private:
            return
        editor.push(b"Diversion", self.diversion)
        before = [] if target.is_customer else request.lines(b"history-info")
        for entry in self._history(request if before else None, canonical):
            editor.append(b"History-Info", entry)

    @property
    def _uri(self) -> bytes:
        return b"sip:%s@%s;user=phone" % (self.number.encode(), self.settings.realm.encode())

    @property
    def diversion(self) -> bytes:
        """RFC 5806 §4. Why the line forwards is not known: a 302 says nothing of it."""
        privacy = b"full" if self.private else b"off"
        return b"<%s>;reason=unknown;counter=1;screen=yes;privacy=%s" % (self._uri, privacy)

    def _history(self, request: Request | None, canonical: str) -> list[bytes]:
        """RFC 7044 §9 and §10: the number that was left, why, and the one that it was mapped to."""
        parent = _last_index(request) if request is not None else b""
        if parent is None:
            return []
        mine = parent + b".1" if parent else b"1"
        privacy = b"Privacy=history&" if self.private else b""
        target = b"sip:%s@%s;user=phone" % (canonical.encode(), self.settings.realm.encode())
        return [
            b"<%s?%sReason=SIP%%3Bcause%%3D302>;index=%s" % (self._uri, privacy, mine),
            b"<%s>;index=%s.1;mp=%s" % (target, mine, mine),
        ]


def _last_index(request: Request) -> bytes | None:
    """The index of the last History-Info entry; None when it has none that can be read."""
    try:
        index = parse_name_addr(request.values(b"history-info")[-1]).param(b"index")
    except (ParseError, IndexError):
        return None
    return index if index is not None and len(index) <= 64 and all(part.isdigit() for part in index.split(b".")) else None


class Before(NamedTuple):
    """What a call has behind it that a line sends on: the number that it reached, those that it came to it from, and how often
    it was forwarded until then."""

    number: str
    earlier: frozenset[str] = frozenset()
    times: int = 0


def decide(attempt: CallAttempt, before: Before, snapshot: Snapshot, settings: Settings, now_at_ms: int) -> Decision:
    """The decision on a call that a line sends on: that on its own call, or the refusal of what no line may forward to."""
    decision = evaluate(attempt, snapshot, now_at_ms)
    rule = _rule(attempt.target, before, decision, settings)
    if not rule:
        # Why a line may not call somebody is not for its callers to know.
        return decision if decision.verdict is not Verdict.DENY else decision._replace(status=UNFOLLOWED)
    status, cause, why = REFUSALS[rule]
    steps = (*decision.steps, (rule, why))
    return decision._replace(
        verdict=Verdict.DENY, rule=rule, reason=why, status=status, cause=cause, callee=None, psap=(), steps=steps
    )


def _rule(target: bytes, before: Before, decision: Decision, settings: Settings) -> str:
    """The rule that refuses to forward to `target`, or ""."""
    if service_of(target) or decision.verdict is Verdict.EMERGENCY:
        # NotrufV § 4(5) s. 4: an emergency call is dialled by who needs help, and from where he is. A forwarded one would
        # show the forwarding line's number and place, and its caller may be anywhere.
        return "forward.emergency"
    uri = parse_uri(target)
    known = uri.is_sip and (uri.host_text in settings.domains or settings.is_ours(uri.host_text, uri.port))
    if text(uri.scheme) not in NUMBERS or (uri.is_sip and not known):
        return "forward.target"  # invariant 6: whoever is not reached by a number is not reached
    if before.number in before.earlier or decision.destination.canonical in {before.number, *before.earlier}:
        return "forward.loop"
    return "forward.depth" if before.times >= MAX_DEPTH else ""


class Forwarding:
    """Takes the INVITEs of forwarded calls to their parts."""

    def __init__(self, desk: Desk, setup: Setup) -> None:
        self._desk = desk
        self._setup = setup

    def invite(self, request: Request, flow: Flow) -> None:
        """An INVITE that a call of ours sent to itself."""
        desk, setup = self._desk, self._setup
        head = setup.calls.by_id[flow.host]
        assert request.via.branch is not None
        target = head.context.branches[client_key(request.via.branch, b"INVITE")].target
        account = desk.snapshot.accounts.get(target.name)
        line = desk.snapshot.lines.get(account.line) if account is not None else None
        if setup.is_full or account is None or line is None:
            desk.count("forwardings", "table_full" if setup.is_full else "no_account")
            desk.reply(request, flow, 480)
            return
        said = said_by(request, from_customer=False)  # in the words of the forwarded call, which screened its caller
        attempt = CallAttempt(
            Direction.OUTGOING, request.uri, line, account, caller=head.record.canonical, setups=setup.started(line)
        )
        before = Before(head.record.canonical, *_told(request))
        decision = decide(attempt, before, desk.snapshot, desk.settings, desk.now.utc_ms)
        canonical = decision.destination.canonical
        restricted = (said.hides or said.anonymous) and canonical not in ALWAYS_SHOWN
        network, given = canonical_caller(said.network), canonical_caller(said.given)
        shown = decision._replace(asserted=network, presented=given or network, restricted=restricted)
        call = setup.open(request, flow, decision, from_customer=True)
        call.from_customer, call.head = False, head
        head.parts += (call,)
        head.record.forwarded_to = [*head.record.forwarded_to, call.id]
        desk.out.append(Journal(keep.admission(head)))  # again, so that it says so after a crash too
        diverted = Diverted(head.record.canonical, decision.restricted, desk.settings)
        self._record(call, head, said, diverted, restricted=restricted)
        call.faces = Faces(request, said, shown, desk.settings, from_customer=False)
        self._edit(call, said, diverted, canonical, restricted=restricted)
        setup.outgoing(call, attempt, decision, shown, needs_slot=self._needs_slot(line))

    def _needs_slot(self, line: Line) -> bool:
        """Whether the part takes a channel of the line's besides that of the call that came in (`forwarding_slots`)."""
        profile = self._desk.snapshot.profiles.get(line.profile)
        return profile is None or slots_of_forwarding(profile) > 0

    @staticmethod
    def _record(call: Call, head: Call, said: Said, diverted: Diverted, *, restricted: bool) -> None:
        """The part's record is the forwarding line's, which pays: its number is the calling one. Of who called it has what that
        line may see; where the INVITE came from is in the record of the call that was forwarded."""
        record = call.record
        record.forwarded_from = head.id
        record.source = record.transport = record.user_agent = ""
        record.diversions = [text(diverted.diversion), *record.diversions]
        if restricted:
            secrets = Face(secrets=secrets_of((said.given, said.network)))
            record.presented = ""
            record.diversions = [value for value in record.diversions if not secrets.is_told_by(value.encode())]

    def _edit(self, call: Call, said: Said, diverted: Diverted, canonical: str, *, restricted: bool) -> None:
        request, faces, settings = call.request, call.faces, self._desk.settings
        assert faces is not None

        def edit(editor: Editor, target: Target) -> None:
            if target.is_customer:
                strip_trust(editor, request, settings)
            set_privacy(editor, request, said, restricted=restricted)
            faces.to(target.kind).put_on_request(editor, request, settings, target.to)
            diverted.put_on(editor, request, target, canonical)

        call.edit = edit


def _told(request: Request) -> tuple[frozenset[str], int]:
    """The numbers that forwarded the call so far, here and before it came, and how often it was forwarded (RFC 5806 §4)."""
    numbers, count = set(), 0
    try:
        values = request.values(b"diversion")
    except ParseError:
        values = []
    for value in values[:MAX_TOLD]:
        count += 1
        try:
            entry = parse_name_addr(value)
        except ParseError:
            continue
        uri = entry.uri
        numbers.add(canonical_caller(uri.user_text if uri.is_sip else text(uri.raw)))
        counter = entry.param(b"counter") or b"1"
        if counter.isdigit() and len(counter) < 4:
            count += max(0, int(counter) - 1)
    return frozenset(numbers - {""}), count
