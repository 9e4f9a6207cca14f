"""CSeq numbers towards a peer that has seen more requests than the party we forward for has sent (RFC 3261 §12.2.1.1).

Pure. The answer to a carrier's challenge uses up a number of the dialog that it is sent in. From then on the dialog's requests
to that peer are sent that much higher, and the responses go back with the number that the party knows.

"""

# DEVIATION: RFC 3261 §16.6, a proxy leaves CSeq alone, ours does not once a trunk route asked for credentials. §22.2 has who
# answers a challenge count CSeq up, and a carrier that looks for merged requests (§8.2.2.2) refuses the answer otherwise.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipproxy.sip.build import Editor
    from sipproxy.sip.message import Request, Response

__all__ = ["UNSHIFTED", "Shift", "restore"]

MAX_CSEQ = 2**31 - 1  # §8.1.1.5
MAX_STEPS = 64  # challenges remembered of one dialog; older requests are over by then


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the numbers that a peer sees are ahead of those that the party sends."""

    steps: tuple[tuple[int, int], ...] = ()
    """Pairs of a number of the party and how far it, and what follows, is ahead; ascending."""
    credentials: tuple[tuple[bytes, bytes], ...] = ()
    """What the last INVITE was accepted with, which its ACK has to repeat (§22.1)."""

    def of(self, number: int) -> int:
        """The number that the peer sees for the party's `number`."""
        ahead = 0
        for first, by in self.steps:
            if first > number:
                break
            ahead = by
        return min(number + ahead, MAX_CSEQ)

    def sent(self, number: int, seen: int) -> Shift:
        """What it is from now on: the party's request `number` went out as `seen`."""
        if seen == self.of(number):
            return self
        before = tuple(step for step in self.steps if step[0] < number)
        return replace(self, steps=(*before[1 - MAX_STEPS :], (number, seen - number)))

    def apply(self, editor: Editor, request: Request) -> None:
        """Write the peer's numbers into the copy of a request of the party, RAck (RFC 3262 §7.2) included."""
        if not self.steps:
            return
        number, method = request.cseq.number, request.method
        editor.set(b"CSeq", b"%d %s" % (self.of(number), method))
        if method == b"ACK":
            for name, value in self.credentials:
                editor.append(name, value)
        elif method == b"PRACK":
            parts = (request.first(b"rack") or b"").split()
            if len(parts) == 3 and parts[1].isdigit() and len(parts[1]) <= 10:
                editor.set(b"RAck", b"%s %d %s" % (parts[0], self.of(int(parts[1])), parts[2]))


UNSHIFTED = Shift()  # of every dialog in which nobody asked for credentials


def restore(editor: Editor, response: Response, request: Request) -> None:
    """Give the response the number that the party's own request had (§8.2.6.2)."""
    if response.cseq.number != request.cseq.number:
        editor.set(b"CSeq", b"%d %s" % (request.cseq.number, request.method))
