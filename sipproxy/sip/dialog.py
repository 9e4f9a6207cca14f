"""The two sides of an answered call, as a proxy between them needs to know them to end it with a BYE of its own
(RFC 3261 §12.1, §12.2), and to ask whether they still know of it.

Pure values. A request that we make up goes to one party and looks as if it came from the other, because that is the only peer
the dialog has. Left out: early dialogs, and who may ask for such a BYE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sipproxy.sip.build import write_request
from sipproxy.sip.message import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.message import Message, Request

__all__ = [
    "DialogSide",
    "after_2xx",
    "after_request",
    "callee_of",
    "dialog_id",
    "from_invite_2xx",
    "sides_of_2xx",
    "target_of",
    "write_ack_2xx",
    "write_bye",
    "write_probe",
]

MAX_CSEQ = 2**31 - 1  # §8.1.1.5


@dataclass(slots=True)
class DialogSide:
    """How to write to one party of a dialog in the other one's place; never changed.

    Not frozen, because every call makes three and a frozen one takes six times as long to make.

    `local` and `remote` are the From and To values with their tags; `remote_target` is a URI; `route_set` holds Route values,
    the next hop first; `cseq` is the last number that the party in whose place we write has used towards this one.
    """

    call_id: bytes
    local: bytes
    local_tag: bytes
    remote: bytes
    remote_tag: bytes
    remote_target: bytes
    route_set: tuple[NameAddr, ...]
    cseq: int

    @property
    def next_hop(self) -> bytes:
        """URI of the element that the next request goes to (§8.1.2)."""
        return self.route_set[0].uri.raw if self.route_set else self.remote_target


def dialog_id(message: Message) -> tuple[bytes, bytes, bytes]:
    """Call-ID, From tag and To tag, the tags b"" where there are none (§12). Raises ParseError."""
    return message.call_id, message.from_.tag or b"", message.to.tag or b""


def from_invite_2xx(invite: Request, response: Response, *, own_routes: int = 1) -> tuple[DialogSide, DialogSide]:
    """The caller's and the callee's side of the dialog that a 2xx to `invite` confirms (§12.1).

    `invite` is the request as we sent it to the callee's side, with our `own_routes` Record-Route values above those of the
    elements between the caller and us; `response` is as we received it and has everybody's. Raises ParseError.
    """
    routes, target = invite.record_routes[own_routes:], target_of(invite)
    return sides_of_2xx(response, own_routes, caller_routes=routes, caller_target=target, cseq=invite.cseq.number)


def sides_of_2xx(
    response: Response, own_routes: int, *, caller_routes: Sequence[NameAddr], caller_target: bytes, cseq: int
) -> tuple[DialogSide, DialogSide]:
    """The same from what counts of the INVITE: the Record-Route values between the caller and us, the remote target that it
    gives, and its number."""
    call_id, caller_tag, callee_tag = dialog_id(response)
    everybody, others = response.record_routes, own_routes + len(caller_routes)
    # §12.1.1: a UAS keeps the values in order; §12.1.2: a UAC reverses them. From where we stand the caller's side is reached
    # like by a UAS, the callee's like by a UAC, each by the part of the values that lies on that side of us.
    downstream = everybody[: max(0, len(everybody) - others)][::-1]
    caller_value, callee_value = response.from_.raw, response.to.raw
    # By position, which takes half the time. §12.1.1: the local sequence number is empty until the callee sends a request.
    caller = DialogSide(call_id, callee_value, callee_tag, caller_value, caller_tag, caller_target, tuple(caller_routes), 0)
    callee = DialogSide(
        call_id, caller_value, caller_tag, callee_value, callee_tag, target_of(response), tuple(downstream), cseq
    )
    return caller, callee


def callee_of(response: Response, is_own: Callable[[NameAddr], bool]) -> DialogSide:
    """The callee's side of the dialog that a 2xx to an INVITE makes, where that INVITE is no longer there.

    `is_own` tells our Record-Route values: those above the first of them are of the elements between us and the callee.
    Raises ParseError.
    """
    call_id, caller_tag, callee_tag = dialog_id(response)
    routes = response.record_routes
    own = next((number for number, route in enumerate(routes) if is_own(route)), len(routes))
    return DialogSide(
        call_id=call_id,
        local=response.from_.raw,
        local_tag=caller_tag,
        remote=response.to.raw,
        remote_tag=callee_tag,
        remote_target=target_of(response),
        route_set=tuple(routes[:own][::-1]),
        cseq=response.cseq.number,
    )


def after_request(
    sides: tuple[DialogSide, DialogSide], request: Request, *, seen: int | None = None
) -> tuple[DialogSide, DialogSide]:
    """The sides after one party sent `request` in the dialog: what we write in its place later comes after it (§12.2.1.1).

    `seen` is the number that the other one sees, where that is not the request's own. ACK and CANCEL bear the number of their
    INVITE and change nothing. Raises ParseError.
    """
    if request.method in {b"ACK", b"CANCEL"}:
        return sides
    caller, callee = sides
    from_tag, number = request.from_.tag or b"", request.cseq.number if seen is None else seen
    if from_tag == callee.local_tag:
        return (caller, _numbered(callee, number)) if number > callee.cseq else sides
    if from_tag == caller.local_tag:
        return (_numbered(caller, number), callee) if number > caller.cseq else sides
    return sides


def _numbered(side: DialogSide, cseq: int) -> DialogSide:
    return DialogSide(
        side.call_id,
        side.local,
        side.local_tag,
        side.remote,
        side.remote_tag,
        side.remote_target,
        side.route_set,
        cseq,
    )


def after_2xx(sides: tuple[DialogSide, DialogSide], request: Request, response: Response) -> tuple[DialogSide, DialogSide]:
    """The sides after a 2xx to a target refresh request, re-INVITE or UPDATE: each Contact is a new remote target (§12.2).

    The route set stays (§12.2: "it is not affected"). Other requests change nothing. Raises ParseError.
    """
    if request.method not in {b"INVITE", b"UPDATE"} or not response.is_success:
        return sides
    caller, callee = sides
    from_tag = request.from_.tag or b""
    if from_tag == caller.remote_tag:
        return _retarget(caller, request), _retarget(callee, response)
    if from_tag == callee.remote_tag:
        return _retarget(caller, response), _retarget(callee, request)
    return sides


def write_bye(side: DialogSide, via: bytes, *, headers: Sequence[tuple[bytes, bytes]] = (), max_forwards: int = 70) -> bytes:
    """A BYE to the party that `side` describes (§12.2.1.1, §15.1.1). `via` is the whole value with our branch.

    `headers` are added before Content-Length, such as a Reason.
    """
    cseq = side.cseq + 1 if side.cseq < MAX_CSEQ else 1
    return _write(side, b"%d BYE" % cseq, via, headers=headers, max_forwards=max_forwards)


def write_ack_2xx(side: DialogSide, via: bytes, *, max_forwards: int = 70) -> bytes:
    """The ACK to a 2xx in the caller's place (§13.2.2.4): with the number of the INVITE, which is the side's."""
    return _write(side, b"%d ACK" % side.cseq, via, headers=(), max_forwards=max_forwards)


def write_probe(side: DialogSide, via: bytes, *, max_forwards: int = 70) -> bytes:
    """An OPTIONS within the dialog to the party that `side` describes (§11, §12.2): whoever has the dialog answers it.

    It bears the number that was used last. The next one belongs to the party in whose place we write: had we taken it, that
    party's next request would be out of order and refused with 500 (§12.2.2). An equal number is no such fault; a party that
    thinks it is refuses the probe, which is an answer all the same.
    """
    accept = [(b"Accept", b"application/sdp")]  # RFC 3261 §11.1 SHOULD
    return _write(side, b"%d OPTIONS" % side.cseq, via, headers=accept, max_forwards=max_forwards)


def _write(side: DialogSide, cseq: bytes, via: bytes, *, headers: Sequence[tuple[bytes, bytes]], max_forwards: int) -> bytes:
    uri, routes = side.remote_target, [route.raw for route in side.route_set]
    if routes and side.route_set[0].uri.param(b"lr") is None:
        # §12.2.1.1, strict routing: the first route is the Request-URI, stripped of what that may not hold, and the remote
        # target goes to the end of the Route values.
        uri = _as_request_uri(side.route_set[0])
        routes = [*routes[1:], b"<" + side.remote_target + b">"]
    return write_request(
        cseq.rpartition(b" ")[2],
        uri,
        [
            (b"Via", via),
            (b"Max-Forwards", b"%d" % max_forwards),
            *((b"Route", route) for route in routes),
            (b"From", side.local),
            (b"To", side.remote),
            (b"Call-ID", side.call_id),
            (b"CSeq", cseq),
            *headers,
        ],
    )


def target_of(message: Message) -> bytes:
    """The remote target that a message gives: its Contact (§12.1), or its sender's own URI where a broken one has none."""
    contacts = message.contacts
    party = message.to if isinstance(message, Response) else message.from_
    return contacts[0].uri.raw if contacts and not contacts[0].is_star else party.uri.raw


def _retarget(side: DialogSide, message: Message) -> DialogSide:
    contacts = message.contacts
    if not contacts or contacts[0].is_star or contacts[0].uri.raw == side.remote_target:
        return side
    return replace(side, remote_target=contacts[0].uri.raw)


def _as_request_uri(route: NameAddr) -> bytes:
    """A route's URI without the headers and the method parameter that a Request-URI may not have (§19.1.1, table 1)."""
    head, *params = route.uri.raw.partition(b"?")[0].split(b";")
    return b";".join([head, *(param for param in params if param.partition(b"=")[0].lower() != b"method")])
