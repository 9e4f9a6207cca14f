"""What the parties of a call see of its caller: screening's result put into messages, and the privacy service of RFC 3323.

Pure. A caller has one *face* for each kind of target. Customers are outside the trust domain (RFC 3325 §7): a hidden caller is
anonymous there, in From, Contact and every header that names him, in both directions for as long as the dialog lives; trunks
and PSAP routes get the number in P-Asserted-Identity. Left out: `session` privacy, which needs the media; bodies and Call-ID,
which a proxy may not change (RFC 3261 §16.6): a router that writes its number into those shows it.
"""

# DEVIATION: RFC 3261 §16.6, From, Contact and headers that name the caller are rewritten or taken out of a customer's message
# when they show a number that is hidden or not his, and put back in the other direction: § 120 TKG and § 15 TDDDG demand it,
# and RFC 3323 §5 gives this work to a privacy service. Tags stay, so that dialogs are matched as before.

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.identity import (
    canonical_caller,
    forbidden_caller,
    is_anonymous,
    privacy_values,
    reads_as_number,
    restricts,
    same_number,
)
from policy.model import Verdict
from sipproxy.engine.claims import has_claims, without_claims
from sipproxy.engine.cseq import restore
from sipproxy.engine.forward import TRUSTED_ONLY, is_ours, listener_of, strip_trust
from sipproxy.sip.build import Editor, via_values
from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import PERCENT
from sipproxy.sip.headers import parse_name_addr
from sipproxy.sip.memo import CACHED_LENGTH
from sipproxy.sip.text import text
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.model import Decision
    from sipproxy.engine.settings import Settings
    from sipproxy.sip.flow import Flow, Hop
    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.message import Message, Request, Response

__all__ = [
    "ANONYMOUS",
    "PLAIN",
    "Face",
    "Faces",
    "KnownFaces",
    "Said",
    "forward_in_dialog",
    "forward_response",
    "is_mask",
    "said_by",
    "secrets_of",
    "set_privacy",
    "strip_for_customer",
    "unsupported_privacy",
]

ANONYMOUS = b'"Anonymous" <sip:anonymous@anonymous.invalid>'  # RFC 3323 §4.1.1.3
MAX_IDENTITIES = 4  # asserted identities that are looked at; RFC 3325 §9.1 allows two
KNOWN_FACES = 4096  # ways to name oneself in From of which is kept how they are shown
SHORTEST_SECRET = 6  # digits; what is shorter stands in too many places by chance

# Taken out for a customer when the caller is hidden, whatever they say.
_NAMES_THE_CALLER = (
    *TRUSTED_ONLY,
    b"reply-to",
    b"in-reply-to",
    b"referred-by",
    b"call-info",
    b"organization",
)
_NAMES_THE_USER = (b"subject", b"user-agent", b"server", b"warning")  # RFC 3323 §4.2 and §5.3: only for `user` and `header`
# Needed as they are for the message to be understood; those of them that name the caller are rewritten by themselves.
_KEPT = frozenset(
    b"via route record-route from to call-id cseq contact content-type content-length rack replaces join target-dialog".split()
)
NO_WISH: frozenset[str] = frozenset()
_VEILING = frozenset({"header", "user"})
_UNSUPPORTED = frozenset({"session"})
_KNOWN = frozenset({"none", "id", "header", "user", "session", "critical", "history"})
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_LONG_NUMBER = re.compile(r"\+?[0-9][0-9 ().\-/]{4,}[0-9]")
_SEPARATORS = b"-.() /\t\r\n"


@dataclass(slots=True)
class Said:
    """What an INVITE says of its caller. `given`, `preferred` and `network` are numbers or URIs as received, "" for none.

    Not to be changed.
    """

    given: str  # From
    preferred: str  # P-Preferred-Identity, of a customer
    network: str  # P-Asserted-Identity, of a trunk
    privacy: frozenset[str]  # priv-values
    hides: bool  # Privacy asks to hide the number
    anonymous: bool  # From names nobody


@dataclass(slots=True)
class Face:
    """How the caller looks to one kind of target. Not to be changed.

    `address` is the From value without its tag, b"" for the one that came; `hidden` takes away what names the caller, all
    lines that hold one of `secrets` (digits) included; `veiled` the caller's Via lines and informational headers too.
    """

    address: bytes = b""
    hidden: bool = False
    secrets: tuple[bytes, ...] = ()
    veiled: bool = False

    def put_on(self, editor: Editor, message: Message, settings: Settings, to: Flow | Hop) -> None:
        """Change the copy of a message of the caller's that goes to `to`."""
        if self.hidden:
            self._hide(editor, message, settings, to)

    def put_on_request(self, editor: Editor, request: Request, settings: Settings, to: Flow | Hop) -> None:
        """The same for a request, whose From is the caller."""
        if self.address:
            tag = request.from_.tag
            editor.set(b"From", self.address if tag is None else self.address + b";tag=" + tag)
        if self.hidden:
            self._hide(editor, request, settings, to)
        if self.veiled:
            editor.remove(b"via")

    def _hide(self, editor: Editor, message: Message, settings: Settings, to: Flow | Hop) -> None:
        for name in _NAMES_THE_CALLER:
            if message.has(name):
                editor.remove(name)
        if self.veiled:
            for name in _NAMES_THE_USER:
                if message.has(name):
                    editor.remove(name)
        listener = listener_of(settings, to)
        if message.has(b"contact") and listener is not None:
            transport = b"" if listener.transport == "UDP" else b";transport=" + listener.transport.lower().encode()
            editor.set(b"Contact", b"<sip:anonymous@%s%s>" % (listener.sent_by, transport))
        for key, line in zip(message.keys[1:], message.lines_raw[1:], strict=True):
            if key not in _KEPT and self.is_told_by(line):
                editor.remove(key)

    def is_told_by(self, line: bytes) -> bool:
        """Whether a header line holds one of the caller's numbers, in any of the ways to write it."""
        if not self.secrets:
            return False
        plain = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), line) if PERCENT in line else line
        plain = plain.translate(None, _SEPARATORS)
        return any(secret in plain for secret in self.secrets)


PLAIN = Face()


class KnownFaces:
    """The faces of an answered call, by the kinds of target that it has dialogs with: one, as a rule."""

    __slots__ = ("_faces",)

    def __init__(self, faces: dict[str, Face]) -> None:
        self._faces = tuple(faces.items())

    def to(self, kind: str) -> Face:
        """The face that a target of this kind has seen."""
        for known, face in self._faces:
            if known == kind:
                return face
        if kind == "forward":
            return self.to("trunk")  # within the trust domain too
        raise KeyError(kind)


@functools.lru_cache(maxsize=KNOWN_FACES)  # of the few kinds that there are
def _plain(kinds: tuple[str, ...]) -> KnownFaces:
    """The faces of the many calls whose caller looks to everybody as he says."""
    return KnownFaces(dict.fromkeys(kinds, PLAIN))


class Faces:
    """The caller's face for each kind of target, by the policy's decision about the call."""

    def __init__(self, request: Request, said: Said, decision: Decision, settings: Settings, *, from_customer: bool) -> None:
        self._request, self._said, self._decision, self._settings = request, said, decision, settings
        self._from_customer = from_customer
        self._made: dict[str, Face] = {}

    def to(self, kind: str) -> Face:
        """The face that a target of this kind ("trunk", "psap", "binding", "forward") sees."""
        if kind == "forward":
            kind = "trunk"  # within the trust domain too
        face = self._made.get(kind)
        if face is None:
            face = self._made[kind] = self._make(kind)
        return face

    def known(self) -> KnownFaces:
        """The faces that were asked for so far, without what they were made from."""
        made = self._made
        return _plain(tuple(made)) if all(face is PLAIN for face in made.values()) else KnownFaces(made)

    def _make(self, kind: str) -> Face:
        decision, said = self._decision, self._said
        if kind == "binding" and decision.restricted:
            numbers = (decision.asserted, decision.presented, said.given, said.network, said.preferred)
            return Face(ANONYMOUS, hidden=True, secrets=secrets_of(numbers), veiled=bool(said.privacy & _VEILING))
        if not self._from_customer:
            return PLAIN
        shown = self._shown(kind)
        return Face(shown) if shown else PLAIN

    def _shown(self, kind: str) -> bytes:
        """From of a customer who is not hidden from this target; b"" where it may stay as it came."""
        address, said, decision = self._request.from_, self._said, self._decision
        line, uri = decision.line, address.uri
        area = line.area_code if line is not None else ""
        named = _Named(address.display, uri.raw, said.given, said.anonymous, has_claims(address))
        if decision.verdict is Verdict.EMERGENCY and kind == "trunk":
            kind = "psap"  # to whom help is asked of, the number is shown as it is to a centre
        shown = _shown if len(named.uri) + len(named.display) <= CACHED_LENGTH else _shown.__wrapped__
        return shown(named, decision.presented, area, kind, decision.restricted, self._settings.realm)


class _Named(NamedTuple):
    """How a customer names himself in From: display name, URI, what that means as a number, whether it names nobody on purpose,
    and whether he claims what only a network may say."""

    display: bytes
    uri: bytes
    given: str
    anonymous: bool
    claims: bool


@functools.lru_cache(maxsize=KNOWN_FACES)  # a line names itself in all its calls alike
def _shown(named: _Named, number: str, area: str, kind: str, restricted: bool, realm: str) -> bytes:  # noqa: FBT001, PLR0917
    """From for a target of this kind of a customer who is not hidden from it; b"" where it may stay as it came."""
    given = named.given
    own = same_number(given, number, area)
    display = text(named.display)
    if _misleads(display, number, area):
        display = ""
    if not own and kind == "trunk":
        # An account's name is no number, and an anonymous From of a hidden caller is what he wants to be seen.
        own = not reads_as_number(given) if not named.anonymous else restricted
    elif not own and kind != "binding":
        own = not reads_as_number(given) and not named.anonymous
    if own:
        if not named.claims:
            return b"" if display == text(named.display) else b"<%s>" % named.uri
        mine = b"<%s>" % without_claims(parse_uri(named.uri))
        return mine if not display else _quoted(named.display) + b" " + mine
    if not number:
        return ANONYMOUS
    shown = b"<sip:%s@%s;user=phone>" % (number.encode(), realm.encode())
    return shown if not display or named.anonymous else _quoted(named.display) + b" " + shown


def said_by(request: Request, *, from_customer: bool) -> Said:
    """What an INVITE says of its caller; a header that cannot be read says nothing."""
    address = request.from_
    uri = address.uri
    anonymous = is_anonymous(uri.user_text, uri.host_text, text(address.display))
    privacy, hides = NO_WISH, False
    if b"privacy" in request.first_line:
        said = text(b",".join(request.lines(b"privacy")))
        privacy, hides = privacy_values(said), restricts(said)
    preferred = network = ""
    if from_customer:
        wished = _addresses(request, b"p-preferred-identity")
        preferred = _number_of(wished[0]) if wished else ""
    else:
        network = _network_number(request, address)
    return Said(_number_of(address), preferred, network, privacy, hides, anonymous)


def _network_number(request: Request, address: NameAddr) -> str:
    """The number that a trunk asserts; one that no caller may show counts wherever it stands."""
    asserted = _addresses(request, b"p-asserted-identity")
    others = _addresses(request, b"remote-party-id")
    numbers = [number for found in asserted if reads_as_number(number := _number_of(found))]
    claims = [_number_of(found) for found in others] + [text(found.display) for found in (*asserted, *others, address)]
    shown = (*numbers, *(claim for claim in claims if reads_as_number(claim)))
    forbidden = next((number for number in shown if forbidden_caller(number)), "")
    return forbidden or next(iter(numbers), "")


def _addresses(request: Request, name: bytes) -> list[NameAddr]:
    if name not in request.first_line:
        return []
    try:
        return [parse_name_addr(value) for value in request.values(name)[:MAX_IDENTITIES]]
    except ParseError:
        return []


def _number_of(address: NameAddr) -> str:
    """The user part of a SIP URI, or the whole of another one."""
    uri = address.uri
    return uri.user_text if uri.is_sip else text(uri.raw)


def _misleads(display: str, number: str, area: str) -> bool:
    """Whether a display name shows another number than the caller's."""
    if not display:
        return False
    if reads_as_number(display):
        return not same_number(display, number, area)
    return any(forbidden_caller(found) for found in _LONG_NUMBER.findall(display)[:8])


def _quoted(display: bytes) -> bytes:
    return b'"%s"' % display.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def secrets_of(numbers: tuple[str, ...]) -> tuple[bytes, ...]:
    """The digits by which these numbers are found in a header: the national number of German ones, all of the others."""
    found = set()
    for number in numbers:
        canonical = canonical_caller(number)
        digits = canonical.removeprefix("+49").removeprefix("+") if canonical else ""
        if len(digits) >= SHORTEST_SECRET:
            found.add(digits.encode())
    return tuple(sorted(found))


def unsupported_privacy(values: frozenset[str]) -> frozenset[str]:
    """The priv-values that a request insists on (`critical`) and that are not served here (RFC 3323 §5)."""
    if "critical" not in values:
        return frozenset()
    return (values & _UNSUPPORTED) | (values - _KNOWN)


def set_privacy(editor: Editor, request: Request, said: Said, *, restricted: bool) -> None:
    """The Privacy line for the next hop: with `id` when the number is hidden, and without any wish when it is shown although
    hiding it was asked for. A demand that every proxy serve it (RFC 3323 §4.3) ends here, where it is served."""
    if (request.first(b"proxy-require") or b"").lower() == b"privacy":
        editor.remove(b"proxy-require")
    if restricted:
        if "id" not in said.privacy:
            kept = sorted(said.privacy - {"none", "critical"})
            critical = ["critical"] if "critical" in said.privacy else []
            editor.set(b"Privacy", ";".join([*kept, "id", *critical]).encode("utf-8", "replace"))
    elif (said.hides or said.anonymous) and request.has(b"privacy"):
        editor.remove(b"privacy")


def _restore_parties(editor: Editor, response: Response, request: Request, *, both: bool) -> None:
    """From of a response, or From and To, as the request that it answers had them (RFC 3261 §8.2.6.2)."""
    theirs, ours = response.from_, request.from_
    if theirs.raw != ours.raw and not _same(theirs, ours):
        editor.set(b"From", ours.raw)
    if not both:
        return
    theirs, ours = response.to, request.to
    if (theirs.display, theirs.uri.raw) != (ours.display, ours.uri.raw):
        tag = b";tag=" + theirs.tag if ours.tag is None and theirs.tag is not None else b""
        editor.set(b"To", ours.raw + tag)


def forward_in_dialog(
    editor: Editor, request: Request, invite: Request, *, from_caller: bool, face: Face, strict: bool
) -> None:
    """From and To of a request within a dialog, as the receiving side knows them (RFC 3261 §12.2.1.1).

    `invite` is the one that began the dialog, as received. With `strict`, for a customer's request, a From that is not the
    dialog's, or that claims what only a network may say, is replaced: a number is screened once, and nobody takes on another
    one later (as by RFC 4916).
    """
    sender, caller = request.from_, invite.from_
    if not from_caller:
        if face.address:
            editor.set(b"To", caller.raw)
        if strict and not _same_person(sender, invite.to):
            editor.set(b"From", invite.to.raw + (b"" if sender.tag is None else b";tag=" + sender.tag))
    elif strict and not face.address and sender.raw != caller.raw and not _same_person(sender, caller):
        editor.set(b"From", caller.raw)


def _same(one: NameAddr, other: NameAddr) -> bool:
    """Whether both say the same, however they are written: what was not changed is left as it came."""
    return (one.display, one.uri.raw, one.params) == (other.display, other.uri.raw, other.params)


def _same_person(one: NameAddr, other: NameAddr) -> bool:
    return one.uri.raw == other.uri.raw and one.display in (other.display, b"") and not has_claims(one)


def is_mask(uri: bytes, settings: Settings) -> bool:
    """Whether a Request-URI is the Contact that a hidden caller was given."""
    try:
        parsed = parse_uri(uri)
    except ParseError:
        return False
    return parsed.user == b"anonymous" and is_ours(parsed, settings)


def strip_for_customer(editor: Editor, message: Request | Response, settings: Settings) -> None:
    """A trunk's message to a customer with a Privacy line of its own: what names its sender goes (RFC 3325 §7)."""
    if message.has(b"privacy"):
        values = privacy_values(text(b",".join(message.lines(b"privacy"))))
        if restricts(";".join(values)):
            strip_trust(editor, message, settings)
        elif "history" in values and message.has(b"history-info"):
            editor.remove(b"history-info")


def forward_response(
    response: Response,
    request: Request,
    face: Face,
    settings: Settings,
    to: Flow,
    *,
    from_customer: bool,
    to_customer: bool,
    from_caller: bool = False,
    edit: Callable[[Editor], None] | None = None,
) -> bytes:
    """The response as it goes upstream to who sent `request`: our Via is taken off (RFC 3261 §16.7 step 3), and it can stand in
    a stream (§18.3).

    `face` is the caller's for the other side, `from_caller` that it is he who answers, within the dialog.
    """
    editor = Editor(response)
    editor.pop(b"via")
    restore(editor, response, request)
    if to.transport != "UDP" and not response.has(b"content-length"):
        editor.append(b"Content-Length", b"%d" % len(response.body))
    if from_customer:
        strip_trust(editor, response, settings)
    elif to_customer:
        strip_for_customer(editor, response, settings)
    _restore_parties(editor, response, request, both=from_customer or bool(face.address))
    if from_caller:
        face.put_on(editor, response, settings, to)
    elif face.veiled:
        editor.remove(b"via")
        for value in reversed(via_values(request)):
            editor.push(b"Via", value)
    if edit is not None:
        edit(editor)
    return editor.to_bytes()
